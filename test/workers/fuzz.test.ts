/** Whatever is sent, the edge answers with a success or a refusal of its own: never a 5xx, never a word that is not OpenAI's shape. */
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { edge, KEY_A, makeWorld, type World } from "./world.ts";

const FIELDS = [
  "model",
  "messages",
  "prompt",
  "max_tokens",
  "max_completion_tokens",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "n",
  "seed",
  "stop",
  "stream",
  "stream_options",
  "logprobs",
  "top_logprobs",
  "logit_bias",
  "frequency_penalty",
  "presence_penalty",
  "repetition_penalty",
  "quire",
  "user",
  "metadata",
  "tools",
  "response_format",
  "echo",
  "suffix",
  "best_of",
  "__proto__",
  "constructor",
  "toString",
];
const QUIRE_FIELDS = ["session_id", "selection", "resumable", "priority", "speculation", "deadline_ms", "__proto__"];

/** Values that are near to what is expected, and anything JSON knows. */
const value = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    false,
    0,
    -0,
    -1,
    1,
    1.5,
    1e308,
    -1e308,
    2 ** 53,
    "",
    "0",
    "a",
    "\u0000",
    "\ud800",
    "😀",
    [],
    {},
    [[]],
    [{}],
  ),
  fc.constantFrom<unknown>(
    [{ role: "user", content: "hi" }],
    [{ role: "user", content: [{ type: "text", text: "hi" }] }],
    [1, 2, 3],
    { "5": 1 },
  ),
  fc.jsonValue({ maxDepth: 3 }),
);
const quire = fc.dictionary(fc.constantFrom(...QUIRE_FIELDS), value, { maxKeys: 3 });
const body = fc.dictionary(
  fc.constantFrom(...FIELDS),
  fc.oneof({ weight: 4, arbitrary: value }, { weight: 1, arbitrary: quire }),
  {
    maxKeys: 4,
    noNullPrototype: true,
  },
);
const headers = fc.dictionary(
  fc.constantFrom(
    "x-quire-session",
    "x-request-id",
    "last-event-id",
    "idempotency-key",
    "content-type",
    "accept",
    "origin",
    "content-encoding",
  ),
  fc.string({ unit: fc.integer({ min: 0x20, max: 0x7e }).map((code) => String.fromCharCode(code)), maxLength: 40 }),
  { maxKeys: 2 },
);
const path = fc.oneof(
  fc.constantFrom("/v1/chat/completions", "/v1/completions"),
  fc.constantFrom(
    "/v1/sessions/s",
    "/v1/sessions/s/fork",
    "/v1/sessions/s/stream",
    "/v1/keys",
    "/v1/keys/key_000000000000/expire",
    "/v1/engines/heartbeat",
  ),
  fc.string({ maxLength: 30 }).map((text) => `/v1/${encodeURIComponent(text.toWellFormed())}`),
);
const method = fc.constantFrom("POST", "POST", "POST", "GET", "DELETE", "PUT", "OPTIONS");

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});

/** What came back, if it is an answer as the edge may give it. */
async function checkAnswer(response: Response): Promise<void> {
  const text = await response.text();
  expect(response.status, text).toBeLessThan(500);
  expect(response.headers.get("x-request-id")).not.toBeNull();
  if (response.status < 400) return;
  const { error } = JSON.parse(text) as { error: Record<string, unknown> };
  expect(Object.keys(error).sort()).toEqual(["code", "message", "param", "type"]);
}

describe("anything", () => {
  it("as a turn is answered or refused", async () => {
    let answered = 0;
    await fc.assert(
      fc.asyncProperty(body, fc.boolean(), async (fields, isChat) => {
        const valid = isChat ? { messages: [{ role: "user", content: "hi" }] } : { prompt: "hi" };
        const response = await world.post(isChat ? "/v1/chat/completions" : "/v1/completions", { ...valid, ...fields });
        if (response.status === 200) answered += 1;
        await checkAnswer(response);
      }),
      { numRuns: 120, seed: 7 },
    );
    // Not vacuous: some of them are turns.
    expect(answered).toBeGreaterThan(3);
  }, 60_000);

  it("as bytes, paths, methods and headers is refused", async () => {
    await fc.assert(
      fc.asyncProperty(
        path,
        method,
        headers,
        fc.uint8Array({ maxLength: 60 }),
        fc.boolean(),
        async (to, how, more, bytes, hasKey) => {
          const sent = how === "POST" || how === "PUT" ? bytes : null;
          const auth = hasKey ? { authorization: `Bearer ${KEY_A}` } : {};
          await checkAnswer(
            await edge(to, {
              method: how,
              headers: { ...more, ...auth },
              body: sent as Uint8Array<ArrayBuffer> | null,
            }),
          );
        },
      ),
      { numRuns: 120, seed: 8 },
    );
  }, 60_000);
});
