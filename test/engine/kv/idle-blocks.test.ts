/** Which idle block leaves first, against a sorted list. */
import { expect, it } from "vitest";
import { IdleBlocks } from "../../../engine/kv/idle-blocks.ts";
import { LogicalBlock } from "../../../engine/kv/logical-block.ts";
import { uniform } from "../tiny-model.ts";

it("of the eight released longest ago, the one of least priority, then least heat, then released first", () => {
  const idle = new IdleBlocks();
  const inOrder: LogicalBlock[] = [];
  const next = uniform(3);
  let beyond = 0;
  for (let step = 0; step < 3000; step++) {
    if (next() < 0.55) {
      const block = new LogicalBlock(step, 4);
      block.priority = Math.floor(next() * 3) - 1;
      block.heat = Math.floor(next() * 3);
      block.residentLayerCount = Math.floor(next() * 5);
      idle.add(block);
      inOrder.push(block);
    } else if (inOrder.length > 0) {
      const [gone] = inOrder.splice(Math.floor(next() * inOrder.length), 1);
      expect([idle.delete(gone!), idle.delete(gone!)]).toEqual([true, false]);
    }
    const [expected] = inOrder.slice(0, 8).toSorted((a, b) => a.priority - b.priority || a.heat - b.heat);
    expect(idle.leastWorth()?.index, `step ${step}`).toBe(expected?.index);
    if (inOrder.slice(8).some((block) => block.priority < (expected?.priority ?? 0))) beyond += 1;
    expect(idle.size).toBe(inOrder.length);
    expect(idle.deviceBlockCount).toBe(inOrder.reduce((sum, block) => sum + block.residentLayerCount, 0));
  }
  expect(beyond, "a lesser one was younger than eight others").toBeGreaterThan(100);
  expect([...idle]).toEqual(inOrder);
});
