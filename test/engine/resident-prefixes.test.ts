/** The edge names a session's prefixes as the engine that holds them does. */
import { describe, expect, it } from "vitest";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { PrefixFilter } from "../../protocol/prefix-filter.ts";
import { PromptRouter } from "../../workers/session-log/routed-prompt.ts";
import { NAMESPACE, openForTest, randomIds, type TestEngine, TestSession, untilIdle } from "./harness.ts";

describe.each<[string, SelectionRequest]>([
  ["dense", { policy: "dense", budgetTokens: 0, exact: true }],
  ["quest", { policy: "quest", budgetTokens: 128, exact: true }],
])("%s", (_, selection) => {
  it("finds all of a session where it ran, before and after its first turn, and nothing elsewhere or evicted", async () => {
    const [engine, other] = [await openForTest(), await openForTest()];
    const session = new TestSession("s", selection);
    const router = new PromptRouter();
    const prompt = randomIds(1, 600);
    const route = (namespace: string, tokens: number[]) =>
      router.describe({
        namespace,
        tokens: Uint32Array.from(tokens),
        turnStart: session.ids.length,
        spans: session.spans,
        turnAgeMs: undefined,
      }).prefixKeys;
    const held = (at: TestEngine, namespace = NAMESPACE, tokens: number[] = [...session.ids, 1]) =>
      PrefixFilter.decode(at.residentPrefixes(), LIMITS.prefixFilterBytesMax)?.prefixCount(route(namespace, tokens));
    const first = route(NAMESPACE, prompt);
    expect(first).toHaveLength(2 * 2);
    await session.turn(engine, prompt);
    await session.turn(engine, randomIds(2, 200));
    await untilIdle(engine);
    expect(session.ids.length).toBeGreaterThan(3 * 256);
    expect(held(engine)).toBe(3);
    expect(held(other)).toBe(0);
    expect(held(engine, "fedcba9876543210")).toBe(0);
    const filter = PrefixFilter.decode(engine.residentPrefixes(), LIMITS.prefixFilterBytesMax);
    expect(filter?.prefixCount(first)).toBe(2);
    engine.evictIdle();
    expect(held(engine)).toBe(0);
  });
});
