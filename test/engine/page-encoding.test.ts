import { describe, expect, it } from "vitest";
import { type EngineServerOptions, startEngineServer } from "../../engine/server.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { openForTest, randomIds, TestSession, untilIdle } from "./harness.ts";
import { HOUSE_0_SERVER } from "./house-server.ts";

describe("encodings of stored pages", () => {
  it("are a part of what names them, beside the device's own numerics", async () => {
    const sessionKey = async (options: Partial<EngineServerOptions>): Promise<string> => {
      const server = await startEngineServer({ ...HOUSE_0_SERVER, ...options });
      await server.stop(0);
      return server.opened.keys.of("ab").session("s");
    };
    const keys = [
      await sessionKey({}),
      await sessionKey({ pageEncoding: "int4" }),
      await sessionKey({ kvEncoding: "f32" }),
      await sessionKey({ kvEncoding: "f32", pageEncoding: "f16" }),
    ];
    const numerics = keys.map((key) => /\.(wasm-[^.]*)\./.exec(key)?.[1]);
    expect(numerics[1]).toBe(`${numerics[0]}-int4`);
    expect(numerics[3]).toBe(`${numerics[2]}-f16`);
    expect(await sessionKey({ pageEncoding: "int8" })).toBe(keys[0]);
    expect(new Set(keys).size).toBe(4);
  });

  it("that a pool does not hold are refused, in one line", async () => {
    for (const [kvEncoding, pageEncoding, choices] of [
      ["int8", "f16", "int8 or int4"],
      ["int8", "f32", "int8 or int4"],
      ["f32", "int4", "f32 or f16"],
    ] as const) {
      const started = startEngineServer({ ...HOUSE_0_SERVER, kvEncoding, pageEncoding });
      await expect(started).rejects.toMatchObject({
        ...{ code: "invalid_request", param: "pageEncoding" },
        message: `pages of an ${kvEncoding} pool are stored as ${choices}, not ${pageEncoding}`,
      });
    }
  });

  it("do not meet: an engine of another one computes the session again, and both find their own afterwards", async () => {
    const store = new MemoryStore();
    const session = new TestSession("s", { policy: "dense", budgetTokens: 0, exact: true });
    const bytesStored: number[] = [];
    for (const pages of ["int4", "int8"] as const) {
      const engine = await openForTest({ store, pages });
      const { usage } = await session.turn(engine, randomIds(1, 300));
      expect(usage.source.store).toBe(0);
      await untilIdle(engine);
      await engine.persister.flush();
      const again = await openForTest({ store, pages });
      const logged = session.ids.length;
      expect((await session.turn(again, randomIds(2, 20))).usage.source.store).toBe(logged);
      await untilIdle(again);
      await again.persister.flush();
      const { keys } = await store.list("kv/");
      bytesStored.push(keys.filter(({ key }) => key.includes("/seg/")).reduce((sum, { bytes }) => sum + bytes, 0));
    }
    const [int4, both] = bytesStored as [number, number];
    // Twice the tokens in int8: with heads of 8 channels int4's least codes and steps weigh much.
    expect(both - int4).toBeGreaterThan(2 * int4);
  });
});
