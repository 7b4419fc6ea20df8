/** Conformance of the KV pool: reads and writes, and sequences that move through stored bytes. */
import { describe, expect, it } from "vitest";
import type { KvEncoding, KvPool, SelectionPlan } from "../../../kernels/contract.ts";
import { expectSameBits } from "../support/compare.ts";
import { bytesOf } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, Stage, type StageShape } from "../support/stage.ts";
import { PLANS } from "./selection.ts";

const ENCODINGS: readonly KvEncoding[] = ["f32", "int8"];

/** Blocks are scored by their centres, which no bytes carry: every device makes them of the summaries that it is given. */
const BY_CENTRES: SelectionPlan = {
  ...{ kind: "pages", budgetPages: 8, sinkPages: 1, recentPages: 2, scope: "kv-head", combine: "max", coarseFactor: 2 },
  scorer: { summary: "min-max", radiusWeight: 1 },
};

/** Sizes, round trips, and a sequence carried from pool to pool as bytes. */
export function describePool(lane: Lane): void {
  describe.each(ENCODINGS)(`pool, %s KV (seed ${SEED})`, (encoding) => {
    const spec = {
      ...{ layerCount: 3, kvHeadCount: 2, headDim: 12, encoding, summaryKinds: ["mean-deviation", "min-max"] as const },
      ...{ blockCount: 5, openSlotCount: 2, summarySlotCount: 3 },
    };

    it("has the sizes of the contract's layouts", () => {
      const pool = lane.device().kvPool(spec);
      expect(pool.blockBytes).toBe(
        encoding === "f32" ? 2 * 64 * 12 * 4 * 2 : 2 * (64 * 12 + 12 * 4 + 64 * 12 + 64 * 4),
      );
      expect(pool.openSlotBytes).toBe(3 * 2 * 64 * 12 * 4 * 2);
      expect(pool.summaryBytes).toBe(3 * 2 * 4 * 2 * (12 + 4));
      expect(pool.spec).toEqual(spec);
    });

    it("gives back what was written, entry by entry, from copies", async () => {
      const pool = lane.device().kvPool(spec);
      const random = new Random(SEED);
      const kinds = entriesOf(pool, random);
      for (const { write, bytes } of kinds) {
        const given = bytes.slice();
        write(given);
        given.fill(0);
      }
      for (const { name, read, bytes } of kinds) {
        const got = await read();
        expectSameBits(got, bytes, name);
        got.fill(1);
        expectSameBits(await read(), bytes, `${name}, after the copy was changed`);
      }
    });

    it("writes and reads the first tokens of an open slot only", async () => {
      const pool = lane.device().kvPool(spec);
      const random = new Random(SEED);
      const whole = random.normals(pool.openSlotBytes / 4);
      pool.writeOpen(0, 64, bytesOf(whole));
      const first = random.normals(2 * 3 * 2 * 10 * 12);
      pool.writeOpen(0, 10, bytesOf(first));
      const expected = whole.map((value, index) => {
        const token = Math.floor(index / 12) % 64;
        const head = Math.floor(index / (12 * 64));
        return token < 10 ? first[(head * 10 + token) * 12 + (index % 12)]! : value;
      });
      expectSameBits(await pool.readOpen(0, 64), expected, "64 tokens");
      expectSameBits(await pool.readOpen(0, 10), first, "10 tokens");
      const three = first.filter((_, index) => Math.floor(index / 12) % 10 < 3);
      expectSameBits(await pool.readOpen(0, 3), three, "3 tokens");
      expect((await pool.readOpen(0, 0)).length).toBe(0);
    });

    it("refuses bytes of the wrong length and ids out of range", () => {
      const pool = lane.device().kvPool(spec);
      expect(() => pool.writeBlock(0, new Uint8Array(pool.blockBytes - 1))).toThrow();
      expect(() => pool.writeBlock(5, new Uint8Array(pool.blockBytes))).toThrow();
      expect(() => pool.writeBlock(-1, new Uint8Array(pool.blockBytes))).toThrow();
      expect(() => pool.writeSummary(0, "min-max", new Uint8Array(pool.summaryBytes + 4))).toThrow();
      expect(() => pool.writeSummary(3, "min-max", new Uint8Array(pool.summaryBytes))).toThrow();
      const ofLayer = new Uint8Array(pool.summaryBytes / spec.layerCount);
      expect(() => pool.writeSummary(0, "min-max", ofLayer)).toThrow();
      expect(() => pool.writeSummary(0, "min-max", new Uint8Array(pool.summaryBytes), 0)).toThrow();
      expect(() => pool.writeSummary(0, "min-max", ofLayer, spec.layerCount)).toThrow();
      expect(() => pool.writeSummary(0, "min-max", ofLayer, -1)).toThrow();
      expect(() => pool.writeOpen(0, 2, new Uint8Array(pool.openSlotBytes))).toThrow();
      expect(() => pool.writeOpen(0, 65, new Uint8Array(0))).toThrow();
      expect(() => pool.writeOpen(2, 0, new Uint8Array(0))).toThrow();
    });

    it("takes summaries layer by layer, and leaves the other layers", async () => {
      const random = new Random(SEED);
      const pool = lane.device().kvPool(spec);
      for (const kind of spec.summaryKinds) {
        const [before, after] = [random.bytes(pool.summaryBytes), random.bytes(pool.summaryBytes)];
        const share = pool.summaryBytes / spec.layerCount;
        pool.writeSummary(1, kind, before);
        pool.writeSummary(1, kind, after.subarray(share, 2 * share), 1);
        const expected = before.slice();
        expected.set(after.subarray(share, 2 * share), share);
        expectSameBits(await pool.readSummary(1, kind), expected, "one layer");
        pool.writeSummary(1, kind, after.subarray(0, share), 0);
        for (let layer = 2; layer < spec.layerCount; layer++)
          pool.writeSummary(1, kind, after.subarray(layer * share, (layer + 1) * share), layer);
        expectSameBits(await pool.readSummary(1, kind), after, "all layers");
      }
    });

    it("refuses a kind of summary that it does not keep", async () => {
      const pool = lane.device().kvPool({ ...spec, summaryKinds: ["min-max"] });
      const bytes = new Uint8Array(pool.summaryBytes);
      expect(() => pool.writeSummary(0, "min-max", bytes)).not.toThrow();
      expect(() => pool.writeSummary(0, "mean-deviation", bytes)).toThrow("keeps no mean-deviation");
      await expect(pool.readSummary(0, "mean-deviation")).rejects.toThrow("keeps no mean-deviation");
    });

    it("a sequence moved by its bytes to another pool goes on to the bit", async () => {
      const shape: StageShape = {
        ...{ layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 12, encoding },
        summaryKinds: ["min-max", "mean-deviation"],
      };
      const sequence = makeSequence(shape, 420, SEED);
      const home = new Stage(lane.device(), shape, { blockCapacity: 7, seed: 1 });
      const away = new Stage(lane.device(), shape, { blockCapacity: 9, seed: 2 });
      await home.fill(sequence, 400);
      const [from, to] = [home.place(sequence), away.place(sequence)];
      for (let block = 0; block < 6; block++) {
        for (const layer of [0, 1]) {
          const at = layer * from.blockCapacity + block;
          away.pool.writeBlock(to.blockIds[at]!, await home.pool.readBlock(from.blockIds[at]!));
        }
        for (const kind of shape.summaryKinds) {
          const summary = await home.pool.readSummary(from.summarySlots[block]!, kind);
          const share = summary.length / shape.layerCount;
          if (block % 2 === 0) away.pool.writeSummary(to.summarySlots[block]!, kind, summary);
          else
            for (const layer of [1, 0]) {
              const ofLayer = summary.subarray(layer * share, (layer + 1) * share);
              away.pool.writeSummary(to.summarySlots[block]!, kind, ofLayer, layer);
            }
        }
      }
      away.pool.writeOpen(to.openSlots[6]!, 16, await home.pool.readOpen(from.openSlots[6]!, 16));
      const dense: SelectionPlan = { kind: "dense" };
      for (const { name, plan } of [{ name: "dense", plan: dense }, { name: "coarse", plan: BY_CENTRES }, ...PLANS]) {
        const part = { sequence, position: 400, rowCount: 20, plan };
        const [stayed, moved] = [await home.run([part]), await away.run([part])];
        for (const layer of [0, 1]) {
          expectSameBits(moved.out[0]![layer]!, stayed.out[0]![layer]!, `${name}, layer ${layer}`);
        }
      }
    });
  });
}

interface Entry {
  name: string;
  bytes: Uint8Array<ArrayBuffer>;
  write(bytes: Uint8Array): void;
  read(): Promise<Uint8Array>;
}

/** Every block, summary slot and open slot of a pool with bytes for each. */
function entriesOf(pool: KvPool, random: Random): Entry[] {
  const list = (
    name: string,
    count: number,
    size: number,
    of: (id: number) => Pick<Entry, "read" | "write">,
  ): Entry[] =>
    Array.from({ length: count }, (_, id) => ({ name: `${name} ${id}`, bytes: random.bytes(size), ...of(id) }));
  return [
    ...list("block", pool.spec.blockCount, pool.blockBytes, (id) => ({
      write: (bytes) => pool.writeBlock(id, bytes),
      read: () => pool.readBlock(id),
    })),
    ...pool.spec.summaryKinds.flatMap((kind) =>
      list(`${kind} summary`, pool.spec.summarySlotCount, pool.summaryBytes, (id) => ({
        write: (bytes) => pool.writeSummary(id, kind, bytes),
        read: () => pool.readSummary(id, kind),
      })),
    ),
    ...list("open slot", pool.spec.openSlotCount, pool.openSlotBytes, (id) => ({
      write: (bytes) => pool.writeOpen(id, 64, bytes),
      read: () => pool.readOpen(id, 64),
    })),
  ];
}
