/** A device that is gone ends its engine without a word, so that another engine goes on with the turn; nobody is told of an error. */
import { setTimeout } from "node:timers/promises";
import { expect, it } from "vitest";
import { DeviceLostError } from "../../kernels/device-lost.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { generate, openForTest, randomIds, request, type TestEngine } from "./harness.ts";

const PROMPT = randomIds(3, 90);
const LOST = new DeviceLostError("the GPU was lost: reset");
/** From its `count`-th step on the device is gone. */
function loseAtStep(engine: TestEngine, count: number): void {
  const step = engine.runner.step.bind(engine.runner);
  let steps = 0;
  engine.runner.step = async (sequences) => {
    steps += 1;
    if (steps >= count) throw LOST;
    return await step(sequences);
  };
}

it("no terminal event is sent, and another engine goes on with the same tokens", async () => {
  const whole = await generate(await openForTest(), request({ tokens: idsToBytes(PROMPT) }));
  const losses: DeviceLostError[] = [];
  const engine = await openForTest({ onDeviceLost: (error) => void losses.push(error) });
  loseAtStep(engine, 6);
  const received: number[] = [];
  const ends: unknown[] = [];
  engine.engine.submit(request({ tokens: idsToBytes(PROMPT) }), {
    token: (id) => void received.push(id),
    done: (reason) => void ends.push(reason),
    failed: (error) => void ends.push(error),
  });
  await expect.poll(() => losses.length, { timeout: 10_000 }).toBe(1);
  await setTimeout(50);
  expect(losses).toEqual([LOST]);
  expect(ends).toEqual([]);
  expect(received.length).toBeGreaterThan(0);
  expect(received).toEqual(whole.ids.slice(0, received.length));
  const rest = await generate(
    await openForTest(),
    request({
      ...{ tokens: idsToBytes([...PROMPT, ...received]), replyStart: PROMPT.length },
      maxTokens: whole.ids.length - received.length,
    }),
  );
  expect([...received, ...rest.ids]).toEqual(whole.ids);
});

it("an engine whose owner does not care fails its turns by name", async () => {
  const engine = await openForTest();
  loseAtStep(engine, 3);
  await expect(generate(engine, request({ tokens: idsToBytes(PROMPT) }))).rejects.toBe(LOST);
});
