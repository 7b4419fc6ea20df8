/** What the house model answered to the router's prompts under every choice, as it is kept in a file. */
import { readFile } from "node:fs/promises";
import { gunzipSync } from "node:zlib";
import { UsageError } from "../../cli/usage-error.ts";

/** One reply. */
export interface ChoiceAnswer {
  /** It is word for word what was said densely. */
  isSame: boolean;
  /** It holds what was asked for; false where nothing was. */
  isRight: boolean;
  /** KV and summary bytes read by the steps over question and reply, and how many tokens these were. */
  bytes: number;
  tokens: number;
}

/** All replies to one prompt. */
export interface PromptAnswers {
  id: string;
  /** In the order of the choices. */
  answers: ChoiceAnswer[];
}

/** One line of the file: numbers only, since prompts are built again from their ids. */
export function answersLine({ id, answers }: PromptAnswers): string {
  const rows = answers.map(({ isSame, isRight, bytes, tokens }) => [Number(isSame), Number(isRight), bytes, tokens]);
  return JSON.stringify([id, ...rows]);
}

/**
 * Reads lines of {@link answersLine}, gzipped where the name says so.
 * @throws {UsageError} one line, for a file that is not there or not of this kind.
 */
export async function readAnswers(path: string): Promise<PromptAnswers[]> {
  try {
    const bytes = await readFile(path);
    const text = (path.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("utf8");
    return text.split("\n").filter(Boolean).map(parseLine);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new UsageError(`answers ${path} cannot be read (${code ?? message})`);
  }
}

function parseLine(line: string): PromptAnswers {
  const [id, ...rows] = JSON.parse(line) as [string, ...[number, number, number, number][]];
  return {
    id,
    answers: rows.map(([same, right, bytes, tokens]) => ({ isSame: same === 1, isRight: right === 1, bytes, tokens })),
  };
}
