import { describe, expect, it } from "vitest";
import { ASSISTANT, BOS, ids, makeWorld, says, USER } from "./world.ts";

describe("POST /v1/chat/completions", () => {
  it("answers with OpenAI's object, to the letter", async () => {
    const { chat, engine, model } = await makeWorld();
    await engine.script(...says("hello"));
    const response = await chat("hi");
    const body = await response.json();
    expect(response.status, JSON.stringify(body)).toBe(200);
    expect(body).toMatchObject({ object: "chat.completion", model });
    expect((await engine.lastCall()).request.tokens).toEqual([BOS, USER, ...ids("hi"), ASSISTANT]);
  });
});
