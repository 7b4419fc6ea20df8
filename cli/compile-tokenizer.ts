/** `quire compile-tokenizer`: a model's vocabulary as one file that the edge uses without parsing it. */
import { readFile, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import { compileTokenizer, TOKENIZER_TABLES_NAME } from "../tokenizer/open.ts";
import type { Command } from "./command.ts";
import { describeFlags, parseText, parseWithOperand } from "./flags.ts";
import { openModelFolder } from "./model-folder.ts";
import { writeOutput } from "./output-file.ts";
import { UsageError } from "./usage-error.ts";

const flags = {
  out: {
    help: `file to write; without it ${TOKENIZER_TABLES_NAME} beside the model's files`,
    placeholder: "FILE",
    parse: parseText,
  },
} as const;

/** The command. */
export const compileTokenizerCommand: Command = {
  help: () =>
    "Usage: quire compile-tokenizer MODEL [flags]\n\n" +
    "Compiles the tokenizer of MODEL (a HF folder, a GGUF file or a tokenizer.json) into flat tables, which an edge opens in " +
    `milliseconds (docs/tokenizer-format.md). 'quire start' does this by itself.\n\n${describeFlags(flags)}\n`,
  run: runCompile,
};

async function runCompile(args: readonly string[]): Promise<number> {
  const missing = "compile-tokenizer needs a model";
  const { operand: model, values } = parseWithOperand(flags, args, { env: process.env, missing });
  const { out } = values;
  const { json, folder } = await readTokenizer(model);
  const tables = compileTokenizerFile(model, json);
  if (tables === undefined) {
    throw new UsageError(`model ${model}: its tokenizer is no byte-pair encoding and has no compiled form`);
  }
  const path = out === undefined ? join(folder, TOKENIZER_TABLES_NAME) : resolve(out);
  await writeOutput(path, tables);
  process.stdout.write(`${path}: ${tables.length} bytes (tokenizer.json: ${json.length})\n`);
  return 0;
}

/**
 * The compiled form of the bytes of a `tokenizer.json`; undefined where there is none.
 * @throws {UsageError} one line naming the model and what is wrong with its tokenizer.
 */
export function compileTokenizerFile(model: string, json: Uint8Array): Uint8Array<ArrayBuffer> | undefined {
  try {
    return compileTokenizer(JSON.parse(new TextDecoder().decode(json)));
  } catch (error) {
    if (error instanceof SyntaxError) throw new UsageError(`model ${model}: tokenizer.json is not JSON`);
    if (error instanceof QuireError) throw new UsageError(`model ${model}: ${error.message}`);
    throw error;
  }
}

async function readTokenizer(model: string): Promise<{ json: Uint8Array; folder: string }> {
  const found = await stat(model).catch(() => undefined);
  if (found === undefined) throw new UsageError(`${model} is not there`);
  if (model.endsWith(".json")) return { json: await readFile(model), folder: dirname(resolve(model)) };
  const opened = await openModelFolder(model);
  const folder = opened.path.endsWith(".gguf") ? dirname(opened.path) : opened.path;
  return { json: await opened.readEdgeFile("tokenizer.json"), folder };
}
