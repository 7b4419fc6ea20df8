import { describe, expect, it } from "vitest";
import { SILENT_MS, StoreActivity } from "../../storage/store-activity.ts";

describe("the activity of a store", () => {
  it("is there while calls are under way and answered, and nowhere else", () => {
    const activity = new StoreActivity();
    expect(activity.isAnswering(0)).toBe(false);
    const end = activity.begin(5_000);
    expect(activity.isAnswering(5_000 + SILENT_MS - 1)).toBe(true);
    end(5_030, true);
    expect(activity.isAnswering(5_030)).toBe(false);
  });

  it("ends when no call was answered for a while, whatever calls are added, and comes back with an answer", () => {
    const activity = new StoreActivity();
    const first = activity.begin(0);
    const ends = [400, 900, 1_500, 9_000].map((ms) => activity.begin(ms));
    expect(activity.isAnswering(999)).toBe(true);
    expect(activity.isAnswering(1_000)).toBe(false);
    expect(activity.isAnswering(9_000)).toBe(false);
    first(10_000, false);
    expect(activity.isAnswering(10_000)).toBe(false);
    ends[0]?.(10_200, true);
    expect(activity.isAnswering(10_201)).toBe(true);
    expect(activity.isAnswering(11_200)).toBe(false);
  });
});
