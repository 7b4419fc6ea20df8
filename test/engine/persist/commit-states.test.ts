import { expect, it } from "vitest";
import { CommitQueue } from "../../../engine/persist/commit-queue.ts";
import { LIMITS } from "../../../protocol/limits.ts";
import { keptBytes } from "../../support/kept-bytes.ts";

const loaded = (tokenCount: number, summaryCount = 0) => {
  const summaries = Array.from({ length: summaryCount }, () => ({}));
  return { etag: "e", manifest: { generation: 1, tokenCount, segments: [], summaries, tail: undefined } } as never;
};

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

it("remembers fewer of sessions that are long: so many summary objects together", () => {
  const queue = new CommitQueue({} as never);
  for (let index = 0; index < 40; index++) queue.note(`s${index}`, loaded(index, LIMITS.commitSummariesMax / 8));
  const kept = Array.from({ length: 40 }, (_, index) => index).filter((index) => queue.status(`s${index}`));
  expect(kept).toEqual([32, 33, 34, 35, 36, 37, 38, 39]);
  queue.note("longest", loaded(1, LIMITS.commitSummariesMax + 1));
  expect(queue.status("longest")).toBeDefined();
  expect(queue.status("s39")).toBeUndefined();
});

it("keeps of a session's name no more than that, whatever it was cut out of", () => {
  const { bytes, made } = keptBytes(() => {
    const queue = new CommitQueue({} as never);
    for (let index = 0; index < 100; index++) {
      const message = `session-${String(index).padStart(8, "0")}${"x".repeat(100_000)}`;
      queue.note(`00ff/${message.slice(0, 16)}`, loaded(index));
    }
    return queue;
  });
  expect(made.status("00ff/session-00000099")?.persistedTokens).toBe(99);
  expect(bytes).toBeLessThan(1_000_000);
});
