/** Every kernel of the GPU device, in every form that the host asks for. */
import type { Kernel } from "../../../kernels/webgpu/kernel.ts";
import { APPEND, seal, summarize } from "../../../kernels/webgpu/wgsl/append.ts";
import { appendQueries } from "../../../kernels/webgpu/wgsl/append-queries.ts";
import { attend } from "../../../kernels/webgpu/wgsl/attend.ts";
import { writeCentres } from "../../../kernels/webgpu/wgsl/centres.ts";
import { HALVES, laneCheck } from "../../../kernels/webgpu/wgsl/checks.ts";
import { gatedFfn } from "../../../kernels/webgpu/wgsl/gated-ffn.ts";
import { CHOOSE_BLOCKS, LIST_BLOCKS_OF_UNITS, LIST_PAGES } from "../../../kernels/webgpu/wgsl/masks.ts";
import { GEMV_ROWS, gemm, gemv } from "../../../kernels/webgpu/wgsl/matmul.ts";
import { gemmByMatrices } from "../../../kernels/webgpu/wgsl/matmul-matrix.ts";
import { mergeSplits } from "../../../kernels/webgpu/wgsl/merge-splits.ts";
import { packRows } from "../../../kernels/webgpu/wgsl/pack-rows.ts";
import { summarizePageKeys } from "../../../kernels/webgpu/wgsl/page-keys.ts";
import { PAD_ROWS, QUANTIZE_ROWS } from "../../../kernels/webgpu/wgsl/quantize-rows.ts";
import { COMBINE, SCORE_STATS, TOP_K, TOP_MASS } from "../../../kernels/webgpu/wgsl/rank.ts";
import { summarizeResidualSigns, turnQueries } from "../../../kernels/webgpu/wgsl/residual-signs.ts";
import { rmsNorm } from "../../../kernels/webgpu/wgsl/rms-norm.ts";
import * as rowOps from "../../../kernels/webgpu/wgsl/row-ops.ts";
import { ADJUST_LOGITS, CHOOSE_TOKEN, LOGPROBS, TRUNCATE } from "../../../kernels/webgpu/wgsl/sample.ts";
import { QUANTIZE_QUERIES, scoreBlocks, scorePages, scoreTokens } from "../../../kernels/webgpu/wgsl/score.ts";
import { scorePagesWide } from "../../../kernels/webgpu/wgsl/score-pages.ts";

const MATRICES = ["f32", "bf16", "f16", "int8", "int4"] as const;
const KV = ["f32", "int8"] as const;
const HEADS = [64, 80, 96, 128] as const;

/** Matrices that one dispatch multiplies by. */
const MATRIX_COUNTS = [1, 2, 3] as const;

/** Sizes that GPUs have: NVIDIA and AMD, Intel, Apple. */
const MATRIX_SHAPES = [
  { m: 16, n: 16, k: 16 },
  { m: 8, n: 16, k: 16 },
  { m: 8, n: 8, k: 8 },
] as const;

/** Names are unique. */
export const ALL_KERNELS: readonly Kernel[] = [
  ...[
    rowOps.SILU_MUL,
    rowOps.SILU_MUL_IN_PLACE,
    rowOps.SILU_MUL_QUANTIZE,
    rowOps.COPY,
    rowOps.COPY4,
    rowOps.COPY_WITHIN,
  ],
  ...[
    rowOps.GATHER_ROWS,
    QUANTIZE_ROWS,
    PAD_ROWS,
    APPEND,
    QUANTIZE_QUERIES,
    scoreBlocks("raw"),
    scoreBlocks("keys"),
    LIST_PAGES,
    LIST_BLOCKS_OF_UNITS,
    CHOOSE_BLOCKS,
  ],
  ...[SCORE_STATS, COMBINE, TOP_K, TOP_MASS, ADJUST_LOGITS, TRUNCATE, CHOOSE_TOKEN, LOGPROBS],
  ...[packRows("int8"), packRows("int4")],
  ...[laneCheck(64), laneCheck(256), HALVES],
  ...[64, 4096].flatMap((width) => [rmsNorm(width, false), rmsNorm(width, true)]),
  ...GEMV_ROWS.flatMap((rows) => [gatedFfn("int8", rows), gatedFfn("int4", rows)]),
  ...MATRICES.flatMap((encoding) => [
    ...MATRIX_COUNTS.flatMap((matrices) => [
      ...GEMV_ROWS.map((rows) => gemv(encoding, rows, 1, matrices)),
      ...(encoding === "int8" || encoding === "int4"
        ? [gemv(encoding, 4, 2, matrices), gemv(encoding, 8, 2, matrices)]
        : []),
      gemm(encoding, matrices),
    ]),
    rowOps.embed(encoding),
  ]),
  ...MATRIX_SHAPES.flatMap((shape) =>
    MATRIX_COUNTS.flatMap((matrices) => [
      gemmByMatrices("int8", shape, matrices),
      gemmByMatrices("int4", shape, matrices),
    ]),
  ),
  ...(["min-max", "representatives", "sign-bits", "residual-signs"] as const).flatMap((kind) => [
    scorePages(kind),
    scorePages(kind, "keys"),
  ]),
  ...[16, ...HEADS].flatMap((headDim) =>
    (["min-max", "representatives"] as const).flatMap((kind) =>
      (["raw", "keys", "keys of chunks"] as const).map((result) => scorePagesWide(kind, headDim, result)),
    ),
  ),
  ...KV.flatMap((encoding) => [1, 3].map((parts) => scoreTokens(encoding, parts))),
  ...HEADS.flatMap((headDim) => [
    ...[writeCentres(headDim), mergeSplits(headDim, false)],
    ...(headDim % 32 === 0 ? [mergeSplits(headDim, true)] : []),
    appendQueries(headDim, "codes"),
    ...(headDim % 16 === 0 ? [turnQueries(headDim), appendQueries(headDim, "turned")] : []),
    ...KV.flatMap((encoding) => [
      seal(encoding, undefined, headDim),
      ...(["min-max", "mean-deviation", "centre-deviation"] as const).map((kind) => summarize(kind, encoding, headDim)),
      ...(["representatives", "sign-bits"] as const).map((kind) => summarizePageKeys(kind, encoding, headDim)),
      ...(headDim % 16 === 0 ? [summarizeResidualSigns(encoding, headDim)] : []),
      ...[1, 4].flatMap((rows) => [1, 3].map((partCount) => attend(encoding, headDim, partCount, rows))),
    ]),
  ]),
];
