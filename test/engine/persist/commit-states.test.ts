import { expect, it } from "vitest";
import { CommitQueue } from "../../../engine/persist/commit-queue.ts";
import { LIMITS } from "../../../protocol/limits.ts";

const loaded = (tokenCount: number) =>
  ({ etag: "e", manifest: { generation: 1, tokenCount, summaries: [], tail: undefined } }) as never;

it("remembers the last commits of so many sessions, those that were used longest ago go first", () => {
  const queue = new CommitQueue({} as never);
  const { commitStatesMax } = LIMITS;
  for (let index = 0; index < commitStatesMax; index++) queue.note(`s${index}`, loaded(index));
  queue.note("s0", loaded(1_000_000));
  for (let index = 0; index < 3; index++) queue.note(`t${index}`, loaded(index));
  expect(queue.status("s0")?.persistedTokens).toBe(1_000_000);
  expect([1, 2, 3].map((index) => queue.status(`s${index}`))).toEqual([undefined, undefined, undefined]);
  const kept = Array.from({ length: commitStatesMax }, (_, index) => queue.status(`s${index}`)).filter(Boolean);
  expect(kept.length + 3).toBe(commitStatesMax);
});
