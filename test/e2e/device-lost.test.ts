/** `quire start` with one engine whose device is lost in mid-turn: the process ends, is started again, and the reader gets the whole reply. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type QuireProcess, startQuire, temporaryFolder, until } from "./support/quire-process.ts";
import { ask, passage } from "./support/words.ts";

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let quire: QuireProcess;
beforeAll(async () => {
  folder = await temporaryFolder();
  const before = process.env.NODE_OPTIONS;
  process.env.NODE_OPTIONS = `--import ${fileURLToPath(new URL("support/lose-device.ts", import.meta.url))}`;
  try {
    quire = await startQuire({ dataPath: folder.path });
  } finally {
    if (before === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = before;
  }
});
afterAll(async () => {
  await quire?.kill();
  await folder?.remove();
});

/** A reply of some seconds, to its end; `onText` hears what is there so far. */
async function read(sessionId: string, onText: (text: string) => void): Promise<{ text: string; finish: unknown }> {
  const client = new OpenAI({ baseURL: `${quire.url}/v1`, apiKey: quire.apiKey, maxRetries: 0 });
  const stream = await client.chat.completions.create({
    model: "house-0",
    messages: [{ role: "user", content: `${passage}${ask("Kelino")}` }],
    ...{ stream: true, temperature: 0, max_tokens: 800, logit_bias: { 259: -100 }, quire: { session_id: sessionId } },
  });
  let text = "";
  let finish: unknown;
  for await (const { choices } of stream) {
    text += choices[0]?.delta.content ?? "";
    finish = choices[0]?.finish_reason ?? finish;
    onText(text);
  }
  return { text, finish };
}

it("a turn survives the loss of the only device, to the letter", async () => {
  const whole = await read("whole", () => {});
  expect(whole.finish).toBe("length");
  const lost = Promise.withResolvers<number>();
  const interrupted = read("interrupted", (text) => {
    if (text.length < 100) return;
    lost.resolve(text.length);
  });
  const lettersBefore = await lost.promise;
  process.kill(quire.enginePid, "SIGUSR2");
  expect(await interrupted).toEqual(whole);
  expect(lettersBefore).toBeLessThan(whole.text.length);
  await until(() => /the engine is back \(pid \d+\)/.test(quire.stderr()), "the engine to be back");
  const death = quire
    .stderr()
    .split("\n")
    .find((line) => line.startsWith("quire: the engine ended"));
  expect(death).toMatch(/\b70\b.* \(log: \S+\); starting it again/);
  const log = readFileSync(/log: (\S+)\)/.exec(death ?? "")?.[1] ?? "", "utf8");
  expect(log).toMatch(/the GPU was lost: planted: ending at once/);
});
