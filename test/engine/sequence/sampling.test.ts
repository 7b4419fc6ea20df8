/** What the device is told of the next token, at the ends of what a request may ask for. */
import { expect, it } from "vitest";
import { idsToBytes } from "../../../protocol/ids.ts";
import { generate, openForTest, randomIds, request } from "../harness.ts";

it.each([1e-6, 1e-31, 1e-310, Number.MIN_VALUE])("a temperature of %s is as good as greedy", async (temperature) => {
  const engine = await openForTest();
  const fields = request({ tokens: idsToBytes(randomIds(5, 70)) });
  const greedy = await generate(engine, fields);
  const { sampling } = fields;
  for (const topP of [1, 0.9]) {
    const asked = request({ tokens: fields.tokens, sampling: { ...sampling, temperature, topP } });
    expect((await generate(engine, asked)).ids).toEqual(greedy.ids);
  }
});
