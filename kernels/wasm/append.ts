/** RoPE, the open slots, and the sealing of full blocks. */
import { BLOCK_TOKENS, NOT_RESIDENT, type StepSlice, SUMMARY_KINDS } from "../contract.ts";
import { openHeadAt, openSlotValuesAt } from "../layout.ts";
import { sealedByStep } from "../validate.ts";
import type { Machine } from "./machine.ts";
import type { WasmPool } from "./memory.ts";
import { OP } from "./ops.ts";

/** Everything `append` needs, as addresses. */
export interface AppendArgs {
  pool: WasmPool;
  layer: number;
  headCount: number;
  q: number;
  k: number;
  v: number;
  cos: number;
  sin: number;
  /** {@link writeRowTable} of the step. */
  rowTable: number;
  rowCount: number;
}

/** What rotating or copying an element costs, in multiply-adds of a product. */
const ROTATE_WORK = 32;
/** What sealing an element of a block costs, in the same. */
const SEAL_WORK = 64;

/** Writes {position, open slot} of every row of the step. */
export function writeRowTable(words: Int32Array, at: number, slices: readonly StepSlice[]): void {
  let index = at / 4;
  for (const slice of slices) {
    const blockFirst = Math.floor(slice.position / 64);
    for (let row = 0; row < slice.rowCount; row++) {
      const position = slice.position + row;
      words[index++] = position;
      words[index++] = slice.openSlots[Math.floor(position / 64) - blockFirst] ?? NOT_RESIDENT;
    }
  }
}

/** Rotates, appends, and seals what became full. */
export function append(machine: Machine, args: AppendArgs, slices: readonly StepSlice[]): void {
  const { pool, layer, headCount, rowCount } = args;
  const { kvHeadCount, headDim } = pool.spec;
  const keysOffset = openHeadAt(pool.spec, layer, 0) * 4;
  const valuesOffset = openSlotValuesAt(pool.spec) * 4 + keysOffset;
  const taskCount = Math.min(rowCount, machine.threads.threads * 4);
  machine.threads.queue(OP.rope, {
    taskCount,
    work: rowCount * (headCount + kvHeadCount * 2) * headDim * ROTATE_WORK,
    args: [
      ...[args.q, args.k, args.v, args.cos, args.sin, args.rowTable, rowCount, headCount, kvHeadCount, headDim],
      ...[pool.openAt, pool.openSlotBytes, keysOffset, valuesOffset, taskCount],
    ],
  });
  seal(machine, args, slices);
}

function seal(machine: Machine, { pool, layer }: AppendArgs, slices: readonly StepSlice[]): void {
  const records = sealRecords(pool, layer, slices);
  if (records.length === 0) return;
  machine.threads.finish();
  machine.opArena.clear();
  const table = machine.opArena.take(records.length * 4);
  machine.heap.words.set(records, table / 4);
  const { kvHeadCount, headDim, encoding, rounding, summaryKinds } = pool.spec;
  // The decoded keys, then what a summary is made in.
  machine.threads.ensureScratch((64 + 5) * headDim * 4);
  const kinds = summaryKinds.flatMap((kind, index) => {
    const centresAt = pool.centresAt[index] as number;
    return [
      SUMMARY_KINDS.indexOf(kind),
      (pool.summariesAt[index] as number) + layer * kvHeadCount * pool.summaryHeadStride,
      centresAt === 0 ? 0 : centresAt + layer * kvHeadCount * pool.centreHeadStride,
    ];
  });
  const { keyScalesAt, valuesAt, valueScalesAt } = pool.layout;
  const taskCount = (records.length / 4) * kvHeadCount;
  machine.threads.queue(OP.seal, {
    taskCount,
    work: taskCount * BLOCK_TOKENS * headDim * SEAL_WORK,
    args: [
      ...[
        table,
        kvHeadCount,
        headDim,
        encoding === "int8" ? 1 : 0,
        rounding ? 1 : 0,
        keyScalesAt,
        valuesAt,
        valueScalesAt,
      ],
      ...[pool.summaryHeadStride, summaryKinds.length, pool.centreHeadStride, ...kinds],
    ],
  });
}

/** {open keys, open values, device block, summary slot or -1} of every block that this step fills. */
function sealRecords(pool: WasmPool, layer: number, slices: readonly StepSlice[]): number[] {
  const records: number[] = [];
  const keysOffset = openHeadAt(pool.spec, layer, 0) * 4;
  const valuesOffset = openSlotValuesAt(pool.spec) * 4 + keysOffset;
  for (const slice of slices) {
    const sealed = sealedByStep(slice);
    for (let block = sealed.first; block < sealed.end; block++) {
      const slot = slice.openSlots[block - sealed.first] as number;
      const blockId = slice.blockIds[layer * slice.blockCapacity + block] as number;
      const summarySlot = slice.summarySlots[block] ?? NOT_RESIDENT;
      const open = pool.openAt + slot * pool.openSlotBytes;
      records.push(open + keysOffset, open + valuesOffset, pool.blocksAt + blockId * pool.blockBytes);
      records.push(summarySlot === NOT_RESIDENT ? -1 : summarySlot);
    }
  }
  return records;
}
