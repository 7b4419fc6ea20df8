/** A twin for each kind of pages that the engines of a life have: what they say depends on it. */
import type { StoredEncoding } from "../../../storage/geometry.ts";
import type { Prompt } from "./transcript.ts";
import { type Expected, HouseTwin, type Manner } from "./twin.ts";

/** One, or two beside each other. */
export class Twins {
  readonly #twins: ReadonlyMap<StoredEncoding, HouseTwin>;

  private constructor(twins: ReadonlyMap<StoredEncoding, HouseTwin>) {
    this.#twins = twins;
  }

  static async open(kinds: readonly StoredEncoding[]): Promise<Twins> {
    const twins = new Map<StoredEncoding, HouseTwin>();
    for (const kind of new Set(kinds)) twins.set(kind, await HouseTwin.open(kind));
    return new Twins(twins);
  }

  /** Engines are of several kinds. */
  get isMixed(): boolean {
    return this.#twins.size > 1;
  }

  /**
   * What may be answered, by the kind of engine.
   * @param fingerprint of the answer, which names the kind; without it any of them may have spoken
   */
  replies(name: string, prompt: Prompt, manner: Manner, fingerprint?: string): Promise<Expected[]> {
    const isNamed = fingerprint !== undefined && fingerprint !== "fp_starting";
    const asked = [...this.#twins].filter(
      ([kind]) => !(this.isMixed && isNamed) || fingerprint.endsWith("-int4") === (kind === "int4"),
    );
    return Promise.all(asked.map(([, twin]) => twin.reply(name, prompt, manner)));
  }

  async close(): Promise<void> {
    for (const twin of this.#twins.values()) await twin.close();
  }
}
