/** What a run has measured so far, one JSON line per piece of work, so that a run that was stopped goes on where it was. */
import { appendFile, mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../../cli/usage-error.ts";

const FILE = "journal.jsonl";

/** Results by key, kept in a file. */
export class Journal {
  readonly #path: string;
  readonly #results: Map<string, unknown>;

  private constructor(path: string, results: Map<string, unknown>) {
    this.#path = path;
    this.#results = results;
  }

  /**
   * Opens the journal of a folder, which is made if need be. `settings` is whatever the results depend on.
   * @throws {UsageError} when the folder holds results of other settings or cannot be written.
   */
  static async open(folder: string, settings: unknown): Promise<Journal> {
    const path = join(folder, FILE);
    const head = JSON.stringify({ settings });
    try {
      await mkdir(folder, { recursive: true });
      const text = await readFile(path, "utf8").catch(orEmpty);
      // What a kill cut short has no end, be it the head or a line.
      const whole = text.slice(0, text.lastIndexOf("\n") + 1);
      const [first, ...lines] = whole.split("\n");
      if (whole === "") await writeFile(path, `${head}\n`);
      else if (first !== head) {
        throw new UsageError(`--out: ${folder} holds results of other settings; take another folder or empty it`);
      } else if (whole !== text) await truncate(path, Buffer.byteLength(whole));
      const entries = lines.slice(0, -1).map((line) => JSON.parse(line) as { key: string; result: unknown });
      return new Journal(path, new Map(entries.map(({ key, result }) => [key, result])));
    } catch (error) {
      if (error instanceof UsageError) throw error;
      throw new UsageError(`--out: ${folder} cannot be used (${(error as NodeJS.ErrnoException).code ?? error})`);
    }
  }

  /** Whether a piece of work is done. */
  has(key: string): boolean {
    return this.#results.has(key);
  }

  /** Its result, measured now if need be. */
  async take<T>(key: string, measure: () => Promise<T>): Promise<T> {
    if (!this.#results.has(key)) {
      const result = await measure();
      await appendFile(this.#path, `${JSON.stringify({ key, result })}\n`);
      this.#results.set(key, result);
    }
    return this.#results.get(key) as T;
  }
}

/** Only a journal that is not there has nothing in it: one that cannot be read is not to be written over. */
function orEmpty(error: NodeJS.ErrnoException): string {
  if (error.code === "ENOENT") return "";
  throw error;
}
