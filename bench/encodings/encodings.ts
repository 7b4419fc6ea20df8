/** `npm run bench -- encodings`: what each encoding of stored pages costs in bytes, and what it does to a model's next tokens. */
import { engineFlags } from "../../cli/engine-flags.ts";
import { parseInteger, parseText } from "../../cli/flags.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { MatrixEncoding } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelConfig } from "../../models/contract.ts";
import { readModelConfig } from "../../models/model-files.ts";
import { openModel } from "../../models/open.ts";
import { poolFormOf } from "../../storage/block-encoding.ts";
import { BLOCK_TOKENS, kvGeometry, type StoredEncoding } from "../../storage/geometry.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { defineBench } from "../bench.ts";
import { best, logSoftmax } from "../distribution.ts";
import { documentsOf, readText } from "../eval/subject.ts";
import { poolCounts, Sequence } from "../recall/sequence.ts";
import { type Column, renderTable } from "../table.ts";

const ROWS_MAX = 256;
const SCORED_KIND = "mean-deviation";
/** The first is what the others are compared with. */
const ENCODINGS: readonly StoredEncoding[] = ["f32", "f16", "int8", "int4"];

const { model, threads, weights } = engineFlags;

const encodingFlags = {
  text: { help: "a plain text, long enough for --documents", placeholder: "FILE", parse: parseText },
  context: {
    help: "tokens in front of the compared ones, whole blocks",
    placeholder: "TOKENS",
    fallback: "8192",
    parse: parseInteger({ min: BLOCK_TOKENS, max: 131_072 }),
  },
  tokens: {
    help: "tokens of a document whose successors are compared",
    placeholder: "COUNT",
    fallback: "512",
    parse: parseInteger({ min: 1, max: 8192 }),
  },
  documents: {
    help: "places of the text",
    placeholder: "COUNT",
    fallback: "4",
    parse: parseInteger({ min: 1, max: 1000 }),
  },
  model,
  threads,
  weights,
} as const;

/** One encoding; the figures are means over the compared tokens. */
export interface EncodingRow {
  encoding: StoredEncoding;
  bytesPerToken: number;
  /** Blocks and one kind of summaries, over K and V in f16. */
  shareOfF16: number;
  /** KL of the next token from that with f32 pages, nats. */
  divergence: number;
  /** Tokens after which the likeliest next one is the same. */
  topAgreement: number;
  /** Nats per token of the text. */
  loss: number;
}

const columns: readonly Column<EncodingRow>[] = [
  { header: "pages", align: "left", cell: (row) => row.encoding },
  { header: "bytes/token", cell: (row) => row.bytesPerToken.toFixed(0) },
  { header: "of f16 KV", cell: (row) => row.shareOfF16.toFixed(3) },
  { header: "KL nats", cell: (row) => row.divergence.toExponential(2) },
  { header: "same best %", cell: (row) => (100 * row.topAgreement).toFixed(2) },
  { header: "loss", cell: (row) => row.loss.toFixed(4) },
];

/** The benchmark as the registry names it. */
export const encodingsBench = defineBench({
  summary:
    "Reads places of a text densely with each encoding of pages and compares what follows their last tokens with f32 pages. A page that\n" +
    "was restored equals one that never left, so this is what storing costs; bench recall --kv has the answers to questions.",
  flags: encodingFlags,
  async run(values, context) {
    if (values.text === undefined) throw new UsageError("--text names a plain text");
    const { path: folder, readEdgeFile } = await openModelFolder(values.model);
    const readJson = async (name: string) => JSON.parse(new TextDecoder().decode(await readEdgeFile(name)));
    const words = openTokenizer({
      tokenizerJson: await readJson("tokenizer.json"),
      tokenizerConfig: await readJson("tokenizer_config.json"),
    });
    const tokens = Math.ceil(values.context / BLOCK_TOKENS) * BLOCK_TOKENS + values.tokens + 1;
    const documents = documentsOf(await readText(values.text), words, { count: values.documents, tokens });
    const config = await readModelConfig(folder);
    const rows: EncodingRow[] = [];
    let reference: Float64Array[] | undefined;
    for (const encoding of ENCODINGS) {
      const read = await logProbabilities({ ...values, folder, config, encoding, documents, signal: context.signal });
      if (context.signal.aborted) break;
      reference ??= read;
      rows.push({ encoding, ...bytesOf(config, encoding), ...compare(read, reference, nextTokens(documents, values)) });
      context.progress(renderTable(columns, rows.slice(-1))[1] as string);
    }
    for (const line of renderTable(columns, rows)) context.print(line);
    return { ok: true, data: { settings: values, rows } };
  },
});

function bytesOf(config: ModelConfig, encoding: StoredEncoding): Pick<EncodingRow, "bytesPerToken" | "shareOfF16"> {
  const { layerCount, kvHeadCount, headDim } = config;
  const geometry = kvGeometry({ layerCount, kvHeadCount, headDim, encoding, summaryKinds: [SCORED_KIND] });
  const bytesPerToken = (geometry.blockBytes * layerCount + geometry.summaryBytes) / BLOCK_TOKENS;
  return { bytesPerToken, shareOfF16: bytesPerToken / (2 * 2 * layerCount * kvHeadCount * headDim) };
}

/** Of every compared token of every document, of the whole vocabulary. */
async function logProbabilities(options: {
  folder: string;
  config: ModelConfig;
  encoding: StoredEncoding;
  weights: MatrixEncoding;
  threads: number | undefined;
  documents: readonly (readonly number[])[];
  tokens: number;
  signal: AbortSignal;
}): Promise<Float64Array[]> {
  const { folder, config, encoding, documents, tokens, signal, threads: threadCount } = options;
  const device = await openDevice({ kind: "wasm", ...(threadCount === undefined ? {} : { threads: threadCount }) });
  try {
    let logits = new Float32Array(0);
    const contextTokens = Math.max(...documents.map((ids) => ids.length));
    const runner = await openModel({
      ...{ folder, device, encoding: options.weights, rowsMax: ROWS_MAX },
      kv: {
        ...poolFormOf(encoding),
        summaryKinds: [],
        ...poolCounts({ layerCount: config.layerCount, contextTokens, rowsMax: ROWS_MAX }),
      },
      observe: ({ stage, values }) => {
        if (stage === "logits") logits = new Float32Array(values);
      },
    });
    const sequence = new Sequence(runner, contextTokens);
    const read: Float64Array[] = [];
    for (const ids of documents) {
      sequence.rewind(0);
      const split = ids.length - tokens - 1;
      await sequence.read(ids.slice(0, split), signal);
      for (const id of ids.slice(split, -1)) {
        signal.throwIfAborted();
        await sequence.advance(id, { kind: "dense" });
        read.push(logSoftmax(logits));
      }
    }
    return read;
  } finally {
    await device.close();
  }
}

function nextTokens(documents: readonly (readonly number[])[], { tokens }: { tokens: number }): number[] {
  return documents.flatMap((ids) => ids.slice(ids.length - tokens));
}

function compare(
  read: readonly Float64Array[],
  reference: readonly Float64Array[],
  next: readonly number[],
): Pick<EncodingRow, "divergence" | "topAgreement" | "loss"> {
  let divergence = 0;
  let agreed = 0;
  let loss = 0;
  for (const [row, ours] of read.entries()) {
    const theirs = reference[row] as Float64Array;
    for (const [id, logp] of theirs.entries()) divergence += Math.exp(logp) * (logp - (ours[id] as number));
    agreed += best(ours) === best(theirs) ? 1 : 0;
    loss -= ours[next[row] as number] as number;
  }
  const count = read.length;
  return { divergence: Math.max(0, divergence / count), topAgreement: agreed / count, loss: loss / count };
}
