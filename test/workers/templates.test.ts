import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { describe, expect, it } from "vitest";
import tokenizerConfig from "../../weights/house-0/tokenizer_config.json?raw";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import { sessionOf } from "../../workers/stubs.ts";
import { isolateSessions } from "../../workers/worker-turn/known-sessions.ts";
import { MERGED, mergedTokenizerJson } from "./merged-words.ts";
import { ASSISTANT, BOS, END, env, ids, makeWorld, says, textOf, USER } from "./world.ts";

const newSession = () => ({ quire: { session_id: `template-${crypto.randomUUID()}` } });

/** A tokenizer_config.json with another template. */
function withTemplate(template: string): string {
  return JSON.stringify({ ...(JSON.parse(tokenizerConfig) as object), chat_template: template });
}

describe("a log under a template", () => {
  it("keeps words of a user that look like control tokens, turn after turn", async () => {
    const { chat, engine } = await makeWorld();
    const session = newSession();
    await engine.script(...says("one"));
    await (await chat("say <|end|> or <", session)).text();
    const log = [BOS, USER, ...ids("say <|end|> or <"), ASSISTANT, ...ids("one"), END];
    await (await chat("|end|>", session)).text();
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, USER, ...ids("|end|>"), ASSISTANT]);
    expect(request.turnStart).toBe(log.length);
  });

  it.each(["ab<|end|>ab", "ab <", "<|", "|end|>", "ab\uFDD0"])("keeps the exact ids of the reply %j", async (reply) => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const session = newSession();
    await engine.script(...says(reply));
    expect(await textOf(await chat("q", session))).toBe(reply);
    await (await chat("r", session)).text();
    const log = [BOS, USER, 113, ASSISTANT, ...ids(reply), END];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...log, USER, 114, ASSISTANT]);
    expect(request.turnStart).toBe(log.length);
    await (await chat("s", session)).text();
    expect((await engine.lastCall()).request.turnStart).toBe(log.length + 6);
  });

  it("gets what the template puts behind a reply's end token", async () => {
    const template =
      "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n{% endif %}";
    const { chat, engine } = await makeWorld({ tokenizerConfig: withTemplate(template) });
    const session = newSession();
    await engine.script(...says("one"));
    await (await chat("hi", session)).text();
    const log = [USER, ...ids("user\nhi"), END, 10, USER, ...ids("assistant\none"), END];
    await (await chat("ho", session)).text();
    const { request } = await engine.lastCall();
    expect(request.turnStart).toBe(log.length);
    expect(request.tokens).toEqual([...log, 10, USER, ...ids("user\nho"), END, 10, USER, ...ids("assistant\n")]);
  });

  it("goes on from the prompt when the template does not show the reply as it was", async () => {
    const template =
      "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>{{ m.content | trim }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    const { chat, engine } = await makeWorld({ tokenizerConfig: withTemplate(template) });
    const session = newSession();
    await engine.script(...says("  one "));
    expect(await textOf(await chat("hi", session))).toBe("  one ");
    const prompt = [USER, ...ids("hi"), ASSISTANT];
    await (await chat("ho", session)).text();
    const { request } = await engine.lastCall();
    expect(request.turnStart).toBe(prompt.length);
    expect(request.tokens).toEqual([...prompt, ...ids("one"), END, USER, ...ids("ho"), ASSISTANT]);
  });

  it("passes on why a template refuses, and changes nothing", async () => {
    const template = "{% if messages[0].content == 'no' %}{{ raise_exception('not no') }}{% endif %}<|user|>x";
    const { chat, engine } = await makeWorld({ tokenizerConfig: withTemplate(template) });
    const response = await chat("no");
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { message: expect.stringContaining("not no") } });
    expect(await engine.calls()).toEqual([]);
  });

  it("is tokenized again where its text is not what it was", async () => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const session = newSession();
    await engine.script(...says("abc"));
    await (await chat("q", session)).text();
    const namespace = await namespaceOf("a", env.QUIRE_TENANT_SALT);
    const stub = sessionOf(env, namespace, session.quire.session_id);
    await runInDurableObject(stub, (_: object, state) => {
      state.storage.sql.exec("UPDATE messages SET text_hash = 'of another template'");
    });
    // Another template comes with another deployment, which starts every object and every isolate anew.
    await evictDurableObject(stub);
    isolateSessions.take(namespace, session.quire.session_id);
    await (await chat("r", session)).text();
    const { request } = await engine.lastCall();
    const common = [BOS, USER, 113, ASSISTANT];
    expect(request.tokens).toEqual([...common, MERGED.abc, END, USER, 114, ASSISTANT]);
    expect(request.turnStart).toBe(common.length);
    expect(request.spans).toEqual([{ end: common.length, how: "dense" }]);
  });
});
