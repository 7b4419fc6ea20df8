/** Packed weights on disk: the same model from them, and the checkpoint wherever they are not exactly right. */
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Device, MatrixEncoding } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { openModelFiles } from "../../models/model-files.ts";
import { openModel } from "../../models/open.ts";
import { weightCacheKey } from "../../models/weight-cache.ts";
import { Conversation, poolCounts } from "./conversation.ts";

const SOURCE = "test/models/vectors/fixtures/sharded";

describe.each(["wasm", "reference"] as const)("the cache of packed weights on the %s device", (kind) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind });
  });
  afterAll(() => device?.close());

  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "quire-cache-"));
    await cp(SOURCE, folder, { recursive: true });
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));

  const cachePath = (encoding: MatrixEncoding = "int8") => join(folder, `quire-cache.${encoding}.${kind}.bin`);

  interface Opened {
    fingerprint: string;
    /** Logits' winners and their log probabilities after a prompt: what the weights decide, to the bit. */
    top: unknown;
    /** Packed bytes that came from the cache, matrices that were written row by row. */
    packed: number;
    rows: number;
  }

  /** Opens the model and says what it computes and where its weights came from. */
  async function opened(
    encoding: MatrixEncoding = "int8",
    { weightCache, packing }: { weightCache?: "auto" | "always"; packing?: string } = {},
  ): Promise<Opened> {
    const counts = { packed: 0, rows: 0 };
    const counting: Device = Object.create(device, {
      writePacked: {
        value: (...args: Parameters<Device["writePacked"]>) => {
          counts.packed += args[2].length;
          device.writePacked(...args);
        },
      },
      writeRows: {
        value: (...args: Parameters<Device["writeRows"]>) => {
          counts.rows++;
          device.writeRows(...args);
        },
      },
      ...Object.fromEntries(
        (["emptyMatrix", "readPacked", "buffer", "write", "read", "release", "kvPool", "begin"] as const).map(
          (name) => [name, { value: (device[name] as (...args: unknown[]) => unknown).bind(device) }],
        ),
      ),
      packingId: { value: packing ?? device.packingId },
      kind: { value: device.kind },
    });
    const runner = await openModel({
      folder,
      device: counting,
      encoding,
      kv: { encoding: "f32", summaryKinds: [], ...poolCounts({ layerCount: 2, contextTokens: 64, rowsMax: 32 }) },
      rowsMax: 32,
      weightCache: weightCache ?? "always",
    });
    const conversation = new Conversation(runner, { contextTokens: 64 });
    const sample = await conversation.probe([1, 5, 9, 40, 3, 77]);
    return { fingerprint: runner.fingerprint, top: sample!.top, ...counts };
  }

  it("is written once and used afterwards: same fingerprint, same bits, no row converted", async () => {
    for (const encoding of ["int8", "int4", "bf16"] as const) {
      const first = await opened(encoding);
      expect(first).toMatchObject({ packed: 0 });
      expect(first.rows).toBeGreaterThan(10);
      const second = await opened(encoding);
      expect(second).toMatchObject({ rows: 0, fingerprint: first.fingerprint, top: first.top });
      const { size } = await stat(cachePath(encoding));
      expect(size).toBeGreaterThan(second.packed);
      expect(size).toBeLessThan(second.packed + 8192);
    }
    expect((await readdir(folder)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  it("is not made for a small model unless asked for", async () => {
    await opened("int8", { weightCache: "auto" });
    expect((await readdir(folder)).filter((name) => name.startsWith("quire-cache"))).toEqual([]);
  });

  const damages: [what: string, damage: () => Promise<unknown>][] = [
    ["is cut short", () => truncate(cachePath(), 1000)],
    ["is empty", () => writeFile(cachePath(), "")],
    ["has a flipped bit among the weights", () => flip(100)],
    ["has a flipped bit in its footer", () => flip(-100)],
    ["has a flipped bit in its trailer", () => flip(-14)],
    ["belongs to weights that changed since", () => utimes(join(folder, "model-00001-of-00003.safetensors"), 1, 1)],
    [
      "belongs to another configuration",
      async () => {
        const path = join(folder, "config.json");
        await writeFile(
          path,
          (await readFile(path, "utf8")).replace(/"max_position_embeddings": \d+/, '"max_position_embeddings": 256'),
        );
      },
    ],
  ];
  async function flip(offset: number): Promise<void> {
    const bytes = await readFile(cachePath());
    const at = offset < 0 ? bytes.length + offset : offset;
    bytes[at] = bytes[at]! ^ 4;
    await writeFile(cachePath(), bytes);
  }

  it.each(damages)("that %s is replaced, and the model is the same", async (_, damage) => {
    const whole = await opened();
    await damage();
    const healed = await opened();
    expect(healed).toMatchObject({ fingerprint: whole.fingerprint, top: whole.top });
    expect(healed.rows).toBeGreaterThan(0);
    expect(await opened()).toMatchObject({ rows: 0, fingerprint: whole.fingerprint, top: whole.top });
  });

  it("made of a file in whose place another came while it was open is not that one's", async () => {
    const keyNow = async (between?: () => Promise<void>) => {
      const { config, source, weightFiles } = await openModelFiles(folder);
      await between?.();
      await source.close();
      return weightCacheKey({ files: weightFiles, config, encoding: "int8", packingId: "one" });
    };
    const [shard] = (await readdir(folder)).filter((name) => name.endsWith(".safetensors"));
    const path = join(folder, shard!);
    const before = await keyNow(async () => {
      await cp(path, `${path}.new`);
      await utimes(`${path}.new`, 1, 1);
      await rename(`${path}.new`, path);
    });
    expect(await keyNow()).not.toBe(before);
    expect(await keyNow()).toBe(await keyNow());
  });

  it("of another packing is replaced", async () => {
    await opened("int8", { packing: "older" });
    expect((await opened()).rows).toBeGreaterThan(0);
    expect((await opened()).rows).toBe(0);
    expect((await readdir(folder)).filter((name) => name.startsWith("quire-cache")).length).toBe(1);
  });

  it("that cannot be written is no error, nor is one that another process is writing", async () => {
    await mkdir(cachePath());
    const first = await opened();
    expect(await opened()).toEqual(first);
    expect((await readdir(folder)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
    await rm(cachePath(), { recursive: true });
    await writeFile(`${cachePath()}.tmp`, "half");
    expect(await opened()).toEqual(first);
    expect(await readFile(`${cachePath()}.tmp`, "utf8")).toBe("half");
    // Left behind by a process that ended: it is taken over.
    await utimes(`${cachePath()}.tmp`, 1, 1);
    await opened();
    expect((await opened()).rows).toBe(0);
  });
});
