/** GGUF files of llama.cpp's own package against HF transformers; blocks bit by bit; what a hostile file meets. */
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { parseConfig } from "../../models/config.ts";
import { type GgufFile, type GgufTensor, openGguf } from "../../models/gguf.ts";
import { GGUF_ENCODINGS } from "../../models/gguf-blocks.ts";
import type { GgufValue } from "../../models/gguf-cursor.ts";
import { readGgufConfig } from "../../models/gguf-model.ts";
import { openModelFiles, readModelConfig } from "../../models/model-files.ts";
import { QuireError } from "../../protocol/errors.ts";
import { compute, type FamilyCase, worstError } from "./families.ts";

const FIXTURES = "test/models/vectors/fixtures";
type GgufCase = Omit<FamilyCase, "name"> & { file: string };
const { blocks, cases }: { blocks: Record<string, { bytes: string; values: string }>; cases: GgufCase[] } = JSON.parse(
  readFileSync(`${FIXTURES}/gguf.json`, "utf8"),
);

describe.each(["reference", "wasm"] as const)("GGUF models on the %s device", (kind) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind });
  });
  afterAll(() => device?.close());

  it.each(cases)("$file computes what HF computes with the same values", async (expected) => {
    const { config, source } = await openModelFiles(`${FIXTURES}/${expected.file}`);
    try {
      expect(worstError(await compute(device, expected, { config, source }), expected)).toBeLessThan(1e-4);
    } finally {
      await source.close();
    }
  });
});

describe("GGUF metadata", () => {
  it.each(cases)(
    "of $file is the configuration that HF has, but for how RoPE factors are written",
    async (expected) => {
      const {
        ropeScaling,
        normEps,
        bosTokenId: _,
        eosTokenIds: __,
        ...config
      } = await readModelConfig(`${FIXTURES}/${expected.file}`);
      const json = parseConfig(expected.config);
      const { ropeScaling: jsonScaling, normEps: jsonEps, bosTokenId: ___, eosTokenIds: ____, ...rest } = json;
      expect(config).toEqual(rest);
      expect(normEps).toBeCloseTo(jsonEps, 10);
      if (jsonScaling?.type === "llama3") expect(ropeScaling?.type).toBe("factors");
      else expect(ropeScaling).toEqual(jsonScaling);
    },
  );

  it("names beginning and end tokens", async () => {
    const config = await readModelConfig(`${FIXTURES}/llama-mixed.gguf`);
    expect(config).toMatchObject({ bosTokenId: 258, eosTokenIds: [259, 262] });
  });
});

describe("GGUF metadata that the fixtures do not have", () => {
  let file: GgufFile;
  beforeAll(async () => {
    file = await openGguf(`${FIXTURES}/qwen3-k-quants.gguf`);
  });
  afterAll(() => file?.close());

  const configWith = (changes: Record<string, GgufValue>) =>
    readGgufConfig({ ...file, metadata: new Map([...file.metadata, ...Object.entries(changes)]) });

  it("linear scaling of positions, and a window that no context outgrows", async () => {
    const { contextTokensMax } = await configWith({});
    const scaled = { "qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 4 };
    const config = await configWith({ ...scaled, "qwen3.attention.sliding_window": contextTokensMax });
    expect(config).toMatchObject({ ropeScaling: { type: "linear", factor: 4 }, contextTokensMax });
  });

  it.each<[key: string, changes: Record<string, GgufValue>, message: RegExp]>([
    ["qwen3.expert_count", { "qwen3.expert_count": 8 }, /experts are not supported/],
    ["qwen3.rope.dimension_count", { "qwen3.rope.dimension_count": 16 }, /16 is not supported, only 32/],
    ["qwen3.attention.value_length", { "qwen3.attention.value_length": 64 }, /64 is not supported, only 32/],
    ["qwen3.attention.sliding_window", { "qwen3.attention.sliding_window": 64 }, /a window of 64 tokens/],
    [
      "qwen3.rope.scaling.type",
      { "qwen3.rope.scaling.type": "longrope", "qwen3.rope.scaling.factor": 4 },
      /"longrope" is not supported/,
    ],
    ["qwen3.rope.scaling.factor", { "qwen3.rope.scaling.type": "yarn" }, /is missing/],
    ["qwen3.attention.head_count_kv", { "qwen3.attention.head_count_kv": [1, 1] }, /a value per layer/],
  ])("%s that the forward pass does not do is refused in one line", async (key, changes, message) => {
    const error = await configWith(changes).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(QuireError);
    expect((error as QuireError).message).toMatch(message);
    expect((error as QuireError).message).toContain(`qwen3-k-quants.gguf: ${key}: `);
    expect((error as QuireError).message).not.toContain("\n");
  });
});

describe("RoPE factors of a GGUF file", () => {
  it.each([
    ["one too few", [15], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]],
    ["in rows", [2, 8], [1, 1, 1, 1, 1, 1, 1, 1]],
    ["one that is none", [16], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, Number.NaN]],
  ])("that are %s are refused in one line", async (_, shape, values) => {
    const file = await openGguf(`${FIXTURES}/qwen3-k-quants.gguf`);
    await file.close();
    const encoding = GGUF_ENCODINGS[0] as GgufTensor["encoding"];
    const tensor: GgufTensor = { shape, encoding, offset: 0, bytes: values.length * 4 };
    const readRows = async () => Float32Array.from(values);
    const tensors = new Map([...file.tensors, ["rope_freqs.weight", tensor]]);
    await expect(readGgufConfig({ ...file, tensors, readRows })).rejects.toThrow(/^qwen3-k-quants.gguf: .*rope_freqs/);
  });
});

describe("GGUF blocks", () => {
  it.each(Object.entries(blocks))(
    "%s decode to the bits that llama.cpp's package decodes",
    (name, { bytes, values }) => {
      const encoding = Object.values(GGUF_ENCODINGS).find((each) => each.name === name)!;
      const encoded = new Uint8Array(Buffer.from(bytes, "base64"));
      const out = new Float32Array((encoded.length / encoding.blockBytes) * encoding.blockValues);
      encoding.decode(encoded, out);
      expect(out.length).toBeGreaterThanOrEqual(64);
      // Zeros have a sign that GGML does not care for.
      expect([...out].map((value) => value + 0)).toEqual([...floats(values)].map((value) => value + 0));
    },
  );

  it("are all tested", () => {
    expect(new Set(Object.keys(blocks))).toEqual(new Set(Object.values(GGUF_ENCODINGS).map(({ name }) => name)));
  });
});

function floats(base64: string): Float32Array {
  return new Float32Array(new Uint8Array(Buffer.from(base64, "base64")).buffer);
}

describe("a piece of a GGUF tensor", () => {
  it.each(cases)("of $file is the piece of the whole, wherever it begins", async ({ file }) => {
    const { source } = await openModelFiles(`${FIXTURES}/${file}`);
    try {
      for (const name of source.names) {
        const shape = source.shape(name)!;
        const whole = await source.read(name);
        expect(whole.length).toBe(shape.reduce((a, b) => a * b, 1));
        const rowValues = whole.length / shape[0]!;
        for (const rows of [
          { first: 0, count: 1 },
          { first: 3, count: 5 },
          { first: shape[0]! - 5, count: 5 },
        ]) {
          const piece = await source.readRows(name, rows);
          const expected = whole.subarray(rows.first * rowValues, (rows.first + rows.count) * rowValues);
          expect(piece, `${name} ${JSON.stringify(rows)}`).toEqual(expected);
        }
      }
    } finally {
      await source.close();
    }
  });
});

describe("a hostile GGUF file", () => {
  const good = readFileSync(`${FIXTURES}/qwen2-f16.gguf`);
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "quire-gguf-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** The error of opening these bytes as a model; undefined where they are accepted. Anything but a QuireError is thrown. */
  async function refusal(bytes: Uint8Array): Promise<QuireError | undefined> {
    const path = join(folder, "model.gguf");
    await writeFile(path, bytes);
    try {
      await (await openModelFiles(path)).source.close();
      return undefined;
    } catch (thrown) {
      if (thrown instanceof QuireError) return thrown;
      throw thrown;
    }
  }

  function changed(change: (view: DataView, bytes: Buffer) => void): Uint8Array {
    const bytes = Buffer.from(good);
    change(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), bytes);
    return bytes;
  }

  const broken: [what: string, bytes: Uint8Array, message: RegExp][] = [
    ["nothing", new Uint8Array(0), /is truncated/],
    ["another format", new TextEncoder().encode("GGML and then some"), /is not a GGUF file/],
    ["version 1", changed((view) => view.setUint32(4, 1, true)), /version 1 is not supported/],
    ["big-endian", changed((view) => view.setUint32(4, 3, false)), /version 50331648 is not supported/],
    ["2^60 tensors", changed((view) => view.setBigUint64(8, 2n ** 60n, true)), /a size of 1152921504606846976/],
    ["2^40 tensors", changed((view) => view.setBigUint64(8, 2n ** 40n, true)), /cannot hold a tensor count/],
    ["2^30 metadata", changed((view) => view.setBigUint64(16, 2n ** 30n, true)), /cannot hold a metadata count/],
    ["a key of 2^40 bytes", changed((view) => view.setBigUint64(24, 2n ** 40n, true)), /a string of 1099511627776/],
    ["a key that is not UTF-8", changed((view) => view.setUint8(32, 0xff)), /is not UTF-8/],
    ["a type that is not known", changed((view) => view.setUint32(32 + 20, 77, true)), /type 77 is not known/],
    [
      "another architecture",
      replaced("qwen2", "gemma"),
      /architecture "gemma" is not supported, only llama, qwen2, qwen3/,
    ],
    ["a missing key", replaced("qwen2.block_count", "qwen2.block_cou_t"), /qwen2\.block_count: is missing/],
    ["a missing tensor", replaced("token_embd.weight", "token_e_bd.weight"), /has no token_embd\.weight/],
    ["less data", good.subarray(0, good.length - 64), /is truncated: tensor .* ends beyond the file/],
  ];

  function replaced(from: string, to: string): Uint8Array {
    const bytes = Buffer.from(good);
    for (let at = bytes.indexOf(from); at >= 0; at = bytes.indexOf(from, at + 1)) bytes.write(to, at);
    return bytes;
  }

  it.each(broken)("with %s is refused in one line", async (_, bytes, message) => {
    const error = await refusal(bytes);
    expect(error?.code).toBe("invalid_request");
    expect(error?.message).toMatch(message);
    expect(error?.message).not.toContain("\n");
  });

  it("that ends early is refused wherever it ends", async () => {
    const data = good.length;
    const cuts = Array.from({ length: 150 }, (_, i) => Math.floor((i * data) / 150));
    for (const cut of cuts) {
      const error = await refusal(good.subarray(0, cut));
      expect(error?.message, `cut at ${cut}`).toMatch(/^model\.gguf: /);
    }
  });

  it("with any byte of its header flipped is refused or read, never a crash", async () => {
    const header = good.indexOf("blk.1.ffn_up") + 64;
    let refused = 0;
    let state = 7;
    for (let i = 0; i < 250; i++) {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      const bytes = Buffer.from(good);
      const at = state % header;
      bytes[at] = bytes[at]! ^ (1 << (state >>> 29));
      if ((await refusal(bytes)) !== undefined) refused++;
    }
    expect(refused).toBeGreaterThan(50);
  });

  it("may be opened again after a refusal: nothing is left open", async () => {
    const path = join(folder, "again.gguf");
    await writeFile(path, good);
    const file = await openGguf(path);
    expect(file.tensors.size).toBeGreaterThan(20);
    await file.close();
  });
});
