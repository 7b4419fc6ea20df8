/** The AI SDK with its provider for OpenAI-compatible servers, unmodified. */
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, type ModelMessage, streamText } from "ai";
import { expect, inject, it } from "vitest";
import { answer, ask, passage } from "./support/words.ts";

const provider = createOpenAICompatible({
  name: "quire",
  baseURL: `${inject("edgeUrl")}/v1`,
  apiKey: inject("apiKey"),
  includeUsage: true,
});
const model = provider("house-0");
const opening = { role: "user" as const, content: `By lamplight. ${passage}${ask("Badoru")}` };

it("generates text, and a second turn shows what was cached", async () => {
  const first = await generateText({ model, messages: [opening], temperature: 0, maxRetries: 0 });
  expect(first.text).toBe(answer("Badoru"));
  expect(first.finishReason).toBe("stop");
  expect(first.usage).toMatchObject({
    inputTokens: opening.content.length + 3,
    outputTokens: answer("Badoru").length + 1,
  });
  const messages: ModelMessage[] = [
    opening,
    { role: "assistant", content: first.text },
    { role: "user", content: ask("Kelino") },
  ];
  const second = await generateText({ model, messages, temperature: 0, maxRetries: 0 });
  expect(second.text).toBe(answer("Kelino"));
  // The whole first turn, the reply and its end included.
  expect(second.usage.inputTokenDetails.cacheReadTokens).toBe(opening.content.length + answer("Badoru").length + 4);
});

it("streams text, with the usage at the end", async () => {
  const other = { role: "user" as const, content: `By moonlight. ${passage}${ask("Kelino")}` };
  const first = streamText({ model, messages: [other], temperature: 0, maxRetries: 0 });
  const deltas: string[] = [];
  for await (const delta of first.textStream) deltas.push(delta);
  expect(deltas.join("")).toBe(answer("Kelino"));
  expect(await first.finishReason).toBe("stop");
  expect((await first.usage).outputTokens).toBe(answer("Kelino").length + 1);
  const second = streamText({
    model,
    messages: [other, { role: "assistant", content: deltas.join("") }, { role: "user", content: ask("Badoru") }],
    temperature: 0,
    maxRetries: 0,
  });
  expect(await second.text).toBe(answer("Badoru"));
  expect((await second.usage).inputTokenDetails.cacheReadTokens).toBe(
    other.content.length + answer("Kelino").length + 4,
  );
});
