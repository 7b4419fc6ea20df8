/** Open slots against a naive twin, and what of a tail may be taken over. */
import { describe, expect, it } from "vitest";
import { FreeList } from "../../../engine/kv/free-list.ts";
import { agreement, type IdleTail, OpenBlocks } from "../../../engine/kv/open-blocks.ts";
import { SpanList } from "../../../engine/kv/provenance.ts";
import { uniform } from "../tiny-model.ts";

const dense = (tokenCount: number) => `${tokenCount}:dense`;

it("takes, parks, claims and evicts as a plain list does", () => {
  for (let seed = 0; seed < 60; seed++) {
    const next = uniform(seed);
    const opens = new OpenBlocks(new FreeList(5));
    const taken: number[] = [];
    let tails: { key: string; slot: number; ids: number[] }[] = [];
    const at = (what: string) => `seed ${seed}: ${what}`;
    for (let step = 0; step < 300; step++) {
      const action = next();
      if (action < 0.35 && opens.availableCount > 0) {
        const evicts = taken.length + tails.length === 5;
        const slot = opens.take();
        if (evicts) expect(slot, at("the oldest tail gave way")).toBe(tails.shift()?.slot);
        taken.push(slot);
      } else if (action < 0.55 && taken.length > 0) {
        opens.give(taken.splice(Math.floor(next() * taken.length), 1)[0]!);
      } else if (action < 0.75 && taken.length > 0) {
        const [slot] = taken.splice(Math.floor(next() * taken.length), 1);
        const key = `key-${Math.floor(next() * 3)}`;
        const ids = Array.from({ length: 1 + Math.floor(next() * 4) }, () => Math.floor(next() * 2));
        opens.park(key, { slot: slot!, owner: undefined, ids: Uint32Array.from(ids), describe: dense });
        tails = [...tails.filter((tail) => tail.key !== key), { key, slot: slot!, ids }];
      } else {
        const key = `key-${Math.floor(next() * 3)}`;
        const ids = Array.from({ length: 4 }, () => Math.floor(next() * 2));
        const limit = Math.floor(next() * 4);
        const known = tails.find((tail) => tail.key === key);
        let count = 0;
        while (known && count < limit && count < known.ids.length && known.ids[count] === ids[count]) count += 1;
        const claimed = opens.claim(key, Uint32Array.from(ids), dense, limit);
        expect(claimed, at("claim")).toEqual(count > 0 ? { slot: known!.slot, tokenCount: count } : undefined);
        if (!claimed) continue;
        tails = tails.filter((tail) => tail !== known);
        taken.push(claimed.slot);
      }
      expect([opens.takenCount, opens.idleCount, opens.availableCount], at("counts")).toEqual([
        taken.length,
        tails.length,
        5 - taken.length,
      ]);
    }
    opens.evictIdle();
    expect(opens.availableCount).toBe(5 - taken.length);
    while (opens.availableCount > 0) taken.push(opens.take());
    expect(new Set(taken).size, at("no slot has two holders")).toBe(5);
    expect(() => opens.take()).toThrow();
  }
});

describe("what of a tail agrees", () => {
  const ids = Uint32Array.from({ length: 40 }, (_, index) => index);
  const of = (spans: { end: number; how: string }[]): IdleTail["describe"] => {
    const list = new SpanList(spans);
    return (tokenCount) => list.describeWhole(256, tokenCount);
  };
  const count = (tail: IdleTail["describe"], own: IdleTail["describe"], from = ids, limit = 64) =>
    agreement({ ids, describe: tail }, from, own, limit);

  it("is as far as ids, limit and provenance go", () => {
    const spans = of([{ end: 400, how: "dense" }]);
    expect(count(spans, spans)).toBe(40);
    expect(count(spans, spans, ids, 7)).toBe(7);
    expect(count(spans, spans, Uint32Array.of(0, 1, 2, 99))).toBe(3);
    const decoded = [
      { end: 270, how: "dense" },
      { end: 400, how: "quest.1:128@1" },
    ];
    expect(count(of(decoded), spans)).toBe(14);
    expect(count(of(decoded), of(decoded))).toBe(40);
  });

  it("never ends inside a query group, on either side: the group's choice of pages depends on all of its rows", () => {
    const prompt = of([{ end: 400, how: "quest.1:128@16" }]);
    const cutHere = of([
      { end: 277, how: "quest.1:128@16" },
      { end: 400, how: "quest.1:128@16" },
    ]);
    // The old tail's group went on behind token 277, the new one's ends there, and the other way round.
    expect(count(prompt, cutHere, ids.slice(0, 21))).toBe(16);
    expect(count(cutHere, prompt, ids.slice(0, 21))).toBe(16);
    expect(count(prompt, prompt, ids.slice(0, 21))).toBe(16);
    expect(count(cutHere, cutHere, ids.slice(0, 21))).toBe(21);
    // Below the budget a selected span is dense, row by row.
    const below = of([{ end: 400, how: "quest.1:512@16" }]);
    expect(count(below, below, ids.slice(0, 21))).toBe(21);
    // A block's page 0 ends at its 16th token.
    expect(count(prompt, cutHere, ids.slice(0, 15))).toBe(0);
  });
});
