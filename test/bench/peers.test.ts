import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { llamaBenchArgs } from "../../bench/peers/llama-bench.ts";
import { longState } from "../../bench/peers/llama-state.ts";
import {
  besideRows,
  CONTEXTS,
  computeRatios,
  type NamedPeerRow,
  type OurRow,
  type Ratios,
} from "../../bench/peers/ratios.ts";
import { withSeededHeads } from "../../bench/peers/seeded-heads.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { fakeState, writeFakeLlamaBench, writeFakeNodeLlama } from "./fake-llama.ts";
import { runBench } from "./run-bench.ts";

const MEDIANS = { rate: "tokensPerS", contexts: CONTEXTS } as const;

interface PeersJson {
  ok: boolean;
  settings: { beside: string };
  ratiosBeside: Ratios;
  ratios: Ratios;
  ratiosOfBest: Ratios;
  ours: OurRow[];
  peers: NamedPeerRow[];
  loadAverages: number[];
}

const tinyFlags = ["--shape=tiny", "--threads=1", "--contexts=0,1000", "--peer-contexts=0,1000", "--budget=256"];

describe("bench peers", () => {
  // Some thirty processes.
  it("measures both sides in turns and writes ratios and raw rows", { timeout: 120_000 }, async () => {
    await withTempFolder(async (folder) => {
      const json = join(folder, "peers.json");
      const peers = [
        `--llama-bench=${await writeFakeLlamaBench(folder)}`,
        `--modules=${await writeFakeNodeLlama(folder)}`,
      ];
      const few = ["--gguf=x.gguf", "--tokens=3", "--prefill=100", "--rounds=2", `--json=${json}`];
      const run = await runBench(["peers", ...tinyFlags, ...peers, ...few]);
      expect(run.err).not.toMatch(/bench:/);
      expect(run.code).toBe(0);
      const result = JSON.parse(await readFile(json, "utf8")) as PeersJson;
      // Per round: prefill; dense at 0; dense, selection and the one beside it at 1000.
      expect(result.ours.map(({ kind, contextTokens, selection }) => `${kind} ${contextTokens} ${selection}`)).toEqual([
        ...["prefill 0 dense", "decode 0 dense", "decode 1000 dense", "decode 1000 select", "decode 1000 beside"],
        ...["prefill 0 dense", "decode 0 dense", "decode 1000 dense", "decode 1000 select", "decode 1000 beside"],
      ]);
      // Per round: three cases, two peers, flash attention off and on.
      expect(result.peers).toHaveLength(2 * 3 * 2 * 2);
      expect(new Set(result.peers.map(({ peer }) => peer))).toEqual(new Set(["llama-bench", "node-llama-cpp 9.9.9"]));
      const bench = result.peers.filter(({ peer, kind }) => peer === "llama-bench" && kind === "decode");
      expect(bench[0]).toEqual({
        ...{ peer: "llama-bench", kind: "decode", contextTokens: 0, tokenCount: 3 },
        ...{ tokensPerS: 1, tokensPerSBest: 3, variant: "flash attention off" },
      });
      expect(bench[1]).toMatchObject({ tokensPerS: 2, tokensPerSBest: 4, variant: "flash attention on" });
      const modules = result.peers.filter(({ peer, kind }) => peer !== "llama-bench" && kind === "decode");
      expect(modules).toHaveLength(8);
      for (const { tokensPerS } of modules) expect(tokensPerS).toBeLessThan(600);
      expect(result.ratios.decode0).toBeGreaterThan(0);
      expect(result.ratios.prefill2k).toBeGreaterThan(0);
      expect(result.loadAverages).toHaveLength(2);
      expect(run.out).toMatch(/\nratio to the fastest peer, quest +of medians +of the best\ndecode0 +\d/);
      const beside = result.settings.beside;
      expect(beside).toMatch(/^quest\+layer-budgets\(12\)\+heads\(x[0-9a-f]+\)$/);
      expect(run.out).toContain(`\nbeside it, ${beside}:\nratio to the fastest peer `);
      expect(result.ratiosBeside).toEqual(computeRatios(besideRows(result.ours), result.peers, MEDIANS));
    });
  });

  it.each([
    [[], "--gguf PATH is needed: `make-shape` writes one"],
    [
      ["--gguf=x.gguf", "--modules=/nowhere"],
      "no peer found: give --llama-bench PATH, or --modules DIR with node-llama-cpp in it",
    ],
    [
      ["--gguf=x.gguf", "--llama-bench=/nowhere/llama-bench"],
      "/nowhere/llama-bench failed: spawn /nowhere/llama-bench ENOENT",
    ],
  ])("refuses %j with one clear line", async (args, message) => {
    const run = await runBench(["peers", ...tinyFlags, "--prefill=10", ...args]);
    expect(run.code).toBe(1);
    expect(run.err.split("\n").filter((line) => line.startsWith("bench:"))).toEqual([`bench: ${message}`]);
  });

  it("says in one line why a peer failed", async () => {
    await withTempFolder(async (folder) => {
      const bench = [`--llama-bench=${await writeFakeLlamaBench(folder)}`, "--modules=/nowhere"];
      const modules = [`--modules=${await writeFakeNodeLlama(folder)}`];
      for (const [peer, message] of [
        [bench, /bench: .*llama-bench failed: error: failed to load model\n$/],
        [modules, /bench: node-llama-cpp failed: .*cannot load broken\.gguf\n$/],
      ] as const) {
        const run = await runBench(["peers", ...tinyFlags, "--prefill=10", "--gguf=broken.gguf", ...peer]);
        expect(run.code).toBe(1);
        expect(run.err).toMatch(message);
      }
    });
  });

  it("asks llama-bench for the depth, and for both kinds of attention", () => {
    const options = { path: "llama-bench", ggufPath: "m.gguf", threads: 2 };
    const decode = llamaBenchArgs(options, { kind: "decode", contextTokens: 4096, tokenCount: 16 }).join(" ");
    expect(decode).toBe("-m m.gguf -t 2 -ngl 0 -fa 0,1 -r 2 -o json -p 0 -n 16 -d 4096");
    const prefill = llamaBenchArgs(options, { kind: "prefill", contextTokens: 0, tokenCount: 2048 }).join(" ");
    expect(prefill).toMatch(/-p 2048 -n 0 -d 0$/);
  });
});

describe("ratios", () => {
  const ours = (contextTokens: number, selection: "dense" | "select", tokensPerS: number): OurRow => ({
    ...{ kind: "decode", contextTokens, tokenCount: 16, selection },
    ...{ tokensPerS, tokensPerSBest: tokensPerS * 2, msPerToken: 1000 / tokensPerS },
  });
  const peer = (contextTokens: number, variant: string, tokensPerS: number): NamedPeerRow => ({
    ...{ peer: "p", kind: "decode", contextTokens, tokenCount: 16 },
    ...{ tokensPerS, tokensPerSBest: tokensPerS * 3, variant },
  });

  it("compare medians with the fastest variant, and our growth with itself", () => {
    const rows = [
      ...[ours(0, "dense", 90), ours(0, "dense", 100), ours(0, "dense", 500)],
      ...[ours(4096, "select", 50), ours(16_384, "dense", 20), ours(16_384, "select", 40)],
      ...[ours(32_768, "select", 30), ours(65_536, "select", 20)],
    ];
    const peers = [
      ...[peer(0, "off", 40), peer(0, "on", 50), peer(16_384, "off", 10), peer(16_384, "on", 8)],
      ...[peer(32_768, "off", 3), peer(32_768, "on", 5)],
    ];
    expect(computeRatios(rows, peers, { rate: "tokensPerS", contexts: CONTEXTS })).toEqual({
      decode0: 2,
      decode16kDense: 2,
      decode16kSelect: 4,
      decode32kSelect: 6,
      // 50 ms, 20 ms and 10 ms a token.
      growth4kTo64k: (50 - 10) / (20 - 10),
    });
    const best = computeRatios(rows, peers, { rate: "tokensPerSBest", contexts: CONTEXTS });
    expect(best.decode0).toBeCloseTo(1000 / 150);
    expect(best.decode32kSelect).toBeCloseTo(4);
    expect(computeRatios([ours(0, "dense", 1)], [], { rate: "tokensPerS", contexts: CONTEXTS })).toEqual({});
  });
});

describe("a selection beside the compared one", () => {
  it("takes its place, row by row", () => {
    const row = { kind: "decode", contextTokens: 16_384, tokenCount: 16, tokensPerSBest: 1, msPerToken: 1 } as const;
    const ours = [
      { ...row, selection: "dense", tokensPerS: 1 },
      { ...row, selection: "select", tokensPerS: 2 },
      { ...row, selection: "beside", tokensPerS: 3 },
    ] as const;
    expect(besideRows(ours).map(({ selection, tokensPerS }) => [selection, tokensPerS])).toEqual([
      ["dense", 1],
      ["select", 3],
    ]);
  });

  it("names so many heads as its share is, the same for a seed", () => {
    const shape = { layerCount: 16, kvHeadCount: 8 };
    const named = withSeededHeads("quest+heads(0.125)", shape, 1);
    const digits = named.match(/^quest\+heads\(x([0-9a-f]{32})\)$/)?.[1] ?? "";
    const ones = [...digits].flatMap((digit) =>
      [...Number.parseInt(digit, 16).toString(2)].filter((bit) => bit === "1"),
    );
    expect(ones).toHaveLength(16);
    expect(withSeededHeads("quest+heads(0.125)", shape, 1)).toBe(named);
    expect(withSeededHeads("quest+heads(0.125)", shape, 2)).not.toBe(named);
    expect(withSeededHeads("quest", shape, 1)).toBe("quest");
  });
});

describe("a long state of llama.cpp", () => {
  it.each([false, true])("repeats the cells of a short one (values transposed: %s)", (transposed) => {
    const short = fakeState(4, transposed);
    const same = Buffer.concat([...longState(short, 4)]);
    expect(same.equals(short)).toBe(true);
    const long = Buffer.concat([...longState(short, 10)]);
    expect(long.length).toBe(fakeState(10, transposed).length);
    expect(long.readUInt32LE(8)).toBe(10);
    // Tokens, then cells: positions go on, everything else is repeated.
    expect(long.readUInt32LE(12 + 4 * 9)).toBe(100 + (9 % 4));
    const cellsAt = 12 + 4 * 10 + 8;
    expect(long.readUInt32LE(cellsAt - 4)).toBe(10);
    expect([0, 4, 8].map((at) => long.readUInt32LE(cellsAt + 9 * 12 + at))).toEqual([9, 1, 0]);
    const keysAt = cellsAt + 120 + 8 + 12;
    const shortKeysAt = 12 + 4 * 4 + 8 + 4 * 12 + 8 + 12;
    expect(long.subarray(keysAt + 9 * 6, keysAt + 60)).toEqual(short.subarray(shortKeysAt + 6, shortKeysAt + 12));
  });

  it("refuses what it does not know", () => {
    const state = fakeState(4, false);
    const other = Buffer.from(state);
    other.writeUInt32LE(4, 4);
    expect(() => [...longState(other, 8)]).toThrow("another version");
    expect(() => [...longState(Buffer.concat([state, Buffer.alloc(1)]), 8)]).toThrow("more in it");
    expect(() => [...longState(state.subarray(0, -1), 8)]).toThrow("ends early");
  });
});
