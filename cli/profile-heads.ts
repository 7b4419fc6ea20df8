/** `quire profile-heads MODEL`: measures which KV heads look back for what they copy, and writes it beside the model. */
import { writeFile } from "node:fs/promises";
import { evalFlags } from "../bench/eval/flags.ts";
import { profileHeads } from "../bench/eval/profile-heads.ts";
import { openSubject } from "../bench/eval/subject.ts";
import { describeMachine } from "../bench/machine.ts";
import { readCases } from "../bench/recall/cases.ts";
import { renderTable } from "../bench/table.ts";
import { pathBeside } from "../engine/calibration.ts";
import { HEADS_FILE, type HeadProfile } from "../models/selection/head-profile.ts";
import type { Command } from "./command.ts";
import { describeFlags, type FlagValues, parseFlags, parseInteger } from "./flags.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

const { device, threads, weights, kv, seed } = evalFlags;
const BLOCK = 64;

const profileFlags = {
  tokens: {
    help: "random tokens that are read twice, a multiple of 64: copying from far away is what is looked for",
    placeholder: "COUNT",
    fallback: "512",
    parse: parseTokens,
  },
  seed: { ...seed, help: "of the random tokens" },
  "case-file": { ...evalFlags["case-file"], help: "file of sentences whose tokens are drawn" },
  ...{ device, threads, weights, kv },
} as const;

type ProfileValues = FlagValues<typeof profileFlags>;

/** The command. */
export const profileHeadsCommand: Command = {
  help: () =>
    `Usage: quire profile-heads MODEL [flags]\n\n  MODEL    HF model folder or GGUF file; ${HEADS_FILE} is written beside it\n\n${describeFlags(profileFlags)}\n`,
  async run([model, ...rest]) {
    if (model === undefined || model.startsWith("-")) {
      throw new UsageError("profile-heads needs a model folder or GGUF file");
    }
    await profile(model, parseFlags(profileFlags, rest, {}));
    return 0;
  },
};

async function profile(model: string, values: ProfileValues): Promise<void> {
  const path = await pathBeside(model, HEADS_FILE);
  const { sentences } = await readCases(values["case-file"]);
  const stop = listenForStop(process, () => performance.now());
  const life = new AbortController();
  void stop.requested.then(() => life.abort());
  const { tokens: textTokens, seed: seedValue } = values;
  const subject = await openSubject({ ...values, model, contexts: [textTokens], tokens: textTokens }, []);
  try {
    const ids = subject.tokenizer.encode(sentences.join(""));
    const options = { ids, textTokens, seed: seedValue, signal: life.signal };
    const scores = await profileHeads(subject, options).catch((error: unknown) => {
      if (life.signal.aborted) throw new UsageError("stopped; nothing was written");
      throw error;
    });
    const heads: HeadProfile = { format: 1, fingerprint: subject.runner.fingerprint, scores };
    const measured = { textTokens, seed: seedValue, numericsId: subject.device.numericsId, weights: values.weights };
    const notes = { model: subject.modelId, measured, machine: describeMachine() };
    await writeFile(path, `${JSON.stringify({ ...heads, ...notes }, undefined, 2)}\n`);
    process.stdout.write(`${[...table(scores), "", `written: ${path}`].join("\n")}\n`);
  } finally {
    await subject.device.close();
  }
}

/** Attention that lies on what is copied, a line per layer. */
function table(scores: readonly (readonly number[])[]): string[] {
  const heads = (scores[0] ?? []).map((_, head) => ({
    header: `KV head ${head}, %`,
    cell: ({ own }: { own: readonly number[] }) => ((own[head] as number) * 100).toFixed(1),
  }));
  return renderTable(
    [{ header: "layer", cell: ({ layer }: { layer: number; own: readonly number[] }) => String(layer) }, ...heads],
    scores.map((own, layer) => ({ layer, own })),
  );
}

function parseTokens(text: string): number {
  const value = parseInteger({ min: BLOCK, max: 65_536 })(text);
  if (value % BLOCK === 0) return value;
  throw new UsageError(`must be a multiple of ${BLOCK}`);
}
