/** A model that computes nothing: its tokens are the positions of a trace, whose queries, keys and values go the way that an engine's go. */
import type { Device, DeviceBuffer, KvPool, StepReadback } from "../../../kernels/contract.ts";
import type { SequenceResult, SequenceStep } from "../../../models/contract.ts";
import { RopePositions } from "../../../models/rope-table.ts";
import { assert } from "../../../protocol/assert.ts";
import type { SteppedRunner } from "../../recall/sequence.ts";
import type { TraceFile } from "./trace-file.ts";

/** Steps of one sequence: {@link step} appends, selects and attends layer by layer, and there is nothing between the layers. */
export class TraceRunner implements SteppedRunner {
  readonly config: TraceFile["shape"];
  readonly pool: KvPool;
  readonly rowsMax: number;
  readonly #trace: TraceFile;
  readonly #device: Device;
  readonly #rope: RopePositions;
  /** Per layer `[rowsMax, kvHeadCount, headDim]`. */
  readonly #keys: DeviceBuffer[];
  readonly #values: DeviceBuffer[];
  /** Per layer `[headCount, headDim]`: of a row of the trace. */
  readonly #queries: DeviceBuffer[];
  /** `[rowsMax, headCount, headDim]`, zeros: of rows that ask nothing. */
  readonly #noQueries: DeviceBuffer;
  readonly #output: DeviceBuffer;

  /** `pool` has the trace's shape and is this runner's alone; neither trace nor device is closed with it. */
  constructor(trace: TraceFile, { device, pool, rowsMax }: { device: Device; pool: KvPool; rowsMax: number }) {
    const { layerCount, headCount, kvHeadCount, headDim } = trace.shape;
    this.config = trace.shape;
    this.pool = pool;
    this.rowsMax = rowsMax;
    this.#trace = trace;
    this.#device = device;
    this.#rope = new RopePositions(device, { ...trace.rope, positionCount: trace.tokenCount });
    const queryBytes = headCount * headDim * 4;
    const each = (name: string, bytes: number) =>
      Array.from({ length: layerCount }, (_, layer) => device.buffer(`trace.${name}.${layer}`, bytes));
    this.#keys = each("keys", rowsMax * kvHeadCount * headDim * 4);
    this.#values = each("values", rowsMax * kvHeadCount * headDim * 4);
    this.#queries = each("query", queryBytes);
    this.#noQueries = device.buffer("trace.no-queries", rowsMax * queryBytes);
    this.#output = device.buffer("trace.output", queryBytes);
    device.write(this.#noQueries, 0, new Uint8Array(rowsMax * queryBytes));
  }

  /**
   * One sequence. Without `sample` its rows leave their KV and nothing else; with it there is one row, at a position of the trace's queries, and it attends.
   * @throws {QuireError} for values of the trace that are out of range.
   */
  async step([sequence, ...more]: readonly SequenceStep[]): Promise<SequenceResult[]> {
    assert(sequence !== undefined && more.length === 0, "one sequence at a time");
    const { slice, sample } = sequence;
    const isAsked = sample !== undefined;
    assert(!isAsked || slice.rowCount === 1, "rows of a trace attend one by one");
    const { layerCount, headCount } = this.config;
    const range = { first: slice.position, count: slice.rowCount };
    for (let layer = 0; layer < layerCount; layer++) {
      this.#write(this.#keys[layer] as DeviceBuffer, await this.#trace.keys(layer, range));
      this.#write(this.#values[layer] as DeviceBuffer, await this.#trace.values(layer, range));
      if (isAsked) {
        const row = this.#trace.positions.indexOf(slice.position);
        assert(row >= 0, "the trace has a query there");
        this.#write(this.#queries[layer] as DeviceBuffer, await this.#trace.query(layer, row));
      }
    }
    this.#rope.ensure(range.first, range.first + range.count - 1);
    const { pool } = this;
    const recorder = this.#device.begin([slice]);
    for (let layer = 0; layer < layerCount; layer++) {
      const q = (isAsked ? this.#queries[layer] : this.#noQueries) as DeviceBuffer;
      const [k, v] = [this.#keys[layer] as DeviceBuffer, this.#values[layer] as DeviceBuffer];
      recorder.append({ pool, layer, headCount, q, k, v, rope: this.#rope.table });
      if (!isAsked) continue;
      recorder.select({ pool, layer, headCount, q });
      recorder.attend({ pool, layer, headCount, q, out: this.#output });
    }
    return [resultOf(await recorder.submit())];
  }

  #write(buffer: DeviceBuffer, values: Float32Array): void {
    this.#device.write(buffer, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
}

function resultOf({ misses, traffic, choices }: StepReadback): SequenceResult {
  const [own] = traffic;
  assert(own !== undefined, "a step reports the traffic of its slice");
  const choice = choices?.[0];
  return { misses, traffic: own, ...(choice === undefined ? {} : { choice }) };
}
