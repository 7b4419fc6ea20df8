/** `npm run bench -- make-shape`: the files that this engine and its peers load to be compared with the same weights. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { parseInteger, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { defineBench } from "../bench.ts";
import { shapeConfig, shapeFlag } from "../shapes.ts";
import { writeModel } from "./write-model.ts";

/** `--seed`: of weights, and of KV where a bench fills it. */
export const seedFlag = {
  help: "seed of all random values",
  placeholder: "NUMBER",
  fallback: "1",
  parse: parseInteger({ min: 0, max: 2 ** 32 - 1 }),
} as const;

/** The benchmark as the registry names it. */
export const makeShapeBench = defineBench({
  summary:
    "Writes seeded random weights of a shape as a HF folder (bf16) and as a GGUF file (q8_0) with the same values.",
  flags: {
    shape: shapeFlag,
    out: { help: "folder to write to (required)", placeholder: "DIR", parse: parseText },
    seed: seedFlag,
  },
  async run({ shape, out, seed }, { print }) {
    if (out === undefined) throw new UsageError("--out DIR is needed");
    const written = await writeModel({ name: shape, config: shapeConfig(shape), seed, folder: out });
    const paths = [join(out, "model.safetensors"), written.ggufPath];
    const files = await Promise.all(paths.map(async (path) => ({ path, bytes: (await stat(path)).size })));
    print(`${shape}, seed ${seed}: ${(written.parameterCount / 1e6).toFixed(1)} M parameters`);
    for (const { path, bytes } of files) print(`  ${path}  ${(bytes / 1e6).toFixed(1)} MB`);
    return { ok: true, data: { shape, seed, ...written, files } };
  },
});
