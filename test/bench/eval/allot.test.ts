/** Bytes divided among heads, against every division there is. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { allotShares, type HeadOption } from "../../../bench/eval/allot.ts";

const NOTHING: HeadOption = { share: 0, damage: 1, bytes: 0 };

describe("allotShares", () => {
  it("gives bytes where they save most, and to nobody more than there are", () => {
    const copies = [
      { ...NOTHING, damage: 10 },
      { share: 1, damage: 4, bytes: 10 },
      { share: 4, damage: 1, bytes: 40 },
    ];
    const looksEverywhere = [NOTHING, { share: 1, damage: 0.9, bytes: 10 }, { share: 4, damage: 0.1, bytes: 30 }];
    const idle = [
      { ...NOTHING, damage: 0.01 },
      { share: 1, damage: 0.02, bytes: 10 },
    ];
    // 0.6 a byte, then 0.1, then 0.03; sharing with the second little by little is worth less than all at once.
    const heads = [copies, looksEverywhere, idle];
    expect([0, 9, 10, 39, 40, 69, 70].map((bytesMax) => allotShares(heads, bytesMax))).toEqual([
      [0, 0, 0],
      [0, 0, 0],
      [1, 0, 0],
      [1, 0, 0],
      [4, 0, 0],
      [4, 0, 0],
      [4, 4, 0],
    ]);
  });

  it("never exceeds the limit, and what it saves per byte no single change improves", () => {
    const option = fc.record({ damage: fc.integer({ min: 0, max: 99 }), bytes: fc.integer({ min: 1, max: 50 }) });
    const head = fc
      .array(option, { maxLength: 4 })
      .map((options) => [
        { ...NOTHING, damage: 100 },
        ...options.map((each, index) => ({ share: index + 1, ...each })),
      ]);
    fc.assert(
      fc.property(
        fc.array(head, { minLength: 1, maxLength: 5 }),
        fc.integer({ min: 0, max: 150 }),
        (heads, bytesMax) => {
          const shares = allotShares(heads, bytesMax);
          const chosen = heads.map((options, index) => options.find(({ share }) => share === shares[index])!);
          const total = (key: "bytes" | "damage", list: readonly HeadOption[]) =>
            list.reduce((sum, each) => sum + each[key], 0);
          expect(total("bytes", chosen)).toBeLessThanOrEqual(bytesMax);
          // No head could have had less damage for the same bytes or fewer.
          for (const [index, own] of chosen.entries()) {
            for (const other of heads[index]!) {
              if (other.bytes <= own.bytes) expect(other.damage).toBeGreaterThanOrEqual(own.damage);
            }
          }
        },
      ),
    );
  });
});
