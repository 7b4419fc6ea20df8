import { describe, expect, it } from "vitest";
import { MERGED, mergedTokenizerJson } from "./merged-words.ts";
import { ASSISTANT, BOS, END, edge, ids, KEY_A, KEY_B, makeWorld, says, textOf, USER, until } from "./world.ts";

type Message = { role: string; content: string };

const user = (content: string): Message => ({ role: "user", content });
const assistant = (content: string): Message => ({ role: "assistant", content });

describe("a transcript sent without a session id", () => {
  it("continues the session it came from, with the exact ids of its replies", async () => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    // The engine wrote "abc" in three ids; tokenizing it again would give one.
    await engine.script(...says("abc"));
    const first = await chat([user("q1")]);
    expect(await textOf(first)).toBe("abc");
    const session = first.headers.get("x-quire-session");
    const transcript = [user("q1"), assistant("abc"), user("q2")];
    await engine.script(...says("c"));
    const second = await chat(transcript);
    expect(second.headers.get("x-quire-session")).toBe(session);
    await second.text();
    const one = [BOS, USER, ...ids("q1"), ASSISTANT, ...ids("abc"), END];
    const { request } = await engine.lastCall();
    expect(request.tokens).toEqual([...one, USER, ...ids("q2"), ASSISTANT]);
    expect(request.turnStart).toBe(one.length);
    expect(request.session).toEqual({ id: session, bornMs: expect.any(Number) });
    const third = await chat([...transcript, assistant("c"), user("q3")]);
    expect(third.headers.get("x-quire-session")).toBe(session);
    await third.text();
    expect((await engine.lastCall()).request.turnStart).toBe(one.length + 6);
  });

  it("forks when the session has moved on, at the longest beginning that both have", async () => {
    const { chat, engine } = await makeWorld();
    const opening = [{ role: "system", content: "S" }, user("q1")];
    await engine.script(...says("r1"));
    const session = (await chat(opening)).headers.get("x-quire-session");
    const branch = async (question: string) => {
      const response = await chat([...opening, assistant("r1"), user(question)]);
      await response.text();
      return { id: response.headers.get("x-quire-session"), request: (await engine.lastCall()).request };
    };
    await until(async () => (await engine.calls()).length === 1);
    const one = [BOS, USER, ...ids("S\nq1"), ASSISTANT, ...ids("r1")];
    const left = await branch("left");
    expect(left.id).toBe(session);
    const right = await branch("right");
    expect(right.id).not.toBe(session);
    expect(right.request.session).toMatchObject({ id: right.id, parentId: session });
    expect(right.request.tokens).toEqual([...one, END, USER, ...ids("right"), ASSISTANT]);
    // The end token of the reply is tokenized again and is the same; the fork's log ends before it.
    expect(right.request.turnStart).toBe(one.length);
    const further = await chat([...opening, assistant("r1"), user("right"), assistant("ok"), user("more")]);
    expect(further.headers.get("x-quire-session")).toBe(right.id);
    await further.text();
  });

  it("asks the same long thing again in a fork that keeps the prompt", async () => {
    const { chat, engine } = await makeWorld();
    const long = "q1 ".repeat(400);
    const first = await chat([user(long)]);
    await first.text();
    const again = await chat([user(long)]);
    await again.text();
    expect(again.headers.get("x-quire-session")).not.toBe(first.headers.get("x-quire-session"));
    const { request } = await engine.lastCall();
    const prompt = [BOS, USER, ...ids(long), ASSISTANT];
    expect(request.tokens).toEqual(prompt);
    // A last token is left to run.
    expect(request).toMatchObject({ turnStart: prompt.length - 1, spans: [{ end: prompt.length - 1, how: "dense" }] });
    const next = await chat([user(long), assistant("ok"), user("q2")]);
    await next.text();
    expect((await engine.lastCall()).request).toMatchObject({ turnStart: prompt.length + 3 });
  });

  it("asks the same short thing again in a session of its own, and finds the last of them", async () => {
    const { chat, engine } = await makeWorld();
    const first = await chat([user("q1")]);
    await first.text();
    const again = await chat([user("q1")]);
    await again.text();
    const id = again.headers.get("x-quire-session");
    expect(id).not.toBe(first.headers.get("x-quire-session"));
    expect((await engine.lastCall()).request).toMatchObject({ turnStart: 0, session: { id } });
    const next = await chat([user("q1"), assistant("ok"), user("q2")]);
    await next.text();
    expect(next.headers.get("x-quire-session")).toBe(id);
  });

  it("is not lost when two of them come at once", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...says("r1"));
    await (await chat([user("q1")])).text();
    await engine.script({ do: "admit" }, { do: "wait", ms: 800 }, ...says("slow").slice(1));
    const transcript = [user("q1"), assistant("r1")];
    const slow = chat([...transcript, user("a")]);
    await until(async () => (await engine.calls()).length === 2);
    const quick = await chat([...transcript, user("b")]);
    expect(quick.status).toBe(200);
    expect((await engine.lastCall()).request.turnStart).toBe(
      [BOS, USER, ...ids("q1"), ASSISTANT, ...ids("r1"), END].length,
    );
    expect(quick.headers.get("x-quire-session")).not.toBe((await slow).headers.get("x-quire-session"));
  });

  it("forks a session that somebody named, and leaves it alone", async () => {
    const { chat, engine } = await makeWorld();
    const quire = { session_id: `named-${crypto.randomUUID()}` };
    await engine.script(...says("r1"));
    await (await chat([user("q1")], { quire })).text();
    const plain = await chat([user("q1"), assistant("r1"), user("q2")]);
    await plain.text();
    const id = plain.headers.get("x-quire-session");
    expect(id).not.toBe(quire.session_id);
    const { request } = await engine.lastCall();
    expect(request.session).toMatchObject({ id, parentId: quire.session_id });
    const log = [BOS, USER, ...ids("q1"), ASSISTANT, ...ids("r1"), END];
    expect(request.tokens.slice(0, request.turnStart)).toEqual(log);
  });

  it("forks a session that was named since", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...says("r1"));
    const first = await chat([user("q1")]);
    await first.text();
    const id = first.headers.get("x-quire-session");
    await engine.script(...says("r2"));
    await (await chat([user("q2")], {}, { headers: { "x-quire-session": id ?? "" } })).text();
    const plain = await chat([user("q1"), assistant("r1"), user("q2"), assistant("r2"), user("q3")]);
    await plain.text();
    expect(plain.headers.get("x-quire-session")).not.toBe(id);
    expect((await engine.lastCall()).request.session?.parentId).toBe(id);
  });

  it("starts anew when a reply was changed, and keeps what is before it", async () => {
    const { chat, engine } = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    await engine.script(...says("abc"));
    await (await chat([user("q1")])).text();
    await (await chat([user("q1"), assistant("ab"), user("q2")])).text();
    const { request } = await engine.lastCall();
    const prompt = [BOS, USER, ...ids("q1"), ASSISTANT];
    expect(request.tokens).toEqual([...prompt, MERGED.ab, END, USER, ...ids("q2"), ASSISTANT]);
    expect(request.turnStart).toBe(prompt.length);
  });

  it("of one tenant is nothing to another, and of one model nothing to another", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...says("r1"));
    const mine = await chat([user("q1")]);
    await mine.text();
    const transcript = [user("q1"), assistant("r1"), user("q2")];
    await (await chat(transcript, {}, { key: KEY_B })).text();
    expect((await engine.lastCall()).request.turnStart).toBe(0);
    const other = await makeWorld();
    await (await other.chat(transcript)).text();
    expect((await other.engine.lastCall()).request.turnStart).toBe(0);
  });

  it("forgets a session that was deleted", async () => {
    const { chat, engine } = await makeWorld();
    await engine.script(...says("r1"));
    const first = await chat([user("q1")]);
    await first.text();
    const headers = { authorization: `Bearer ${KEY_A}` };
    await (await edge(`/v1/sessions/${first.headers.get("x-quire-session")}`, { method: "DELETE", headers })).text();
    await (await chat([user("q1"), assistant("r1"), user("q2")])).text();
    const { request } = await engine.lastCall();
    expect(request).toMatchObject({ turnStart: 0, session: { id: expect.stringMatching(/^s-/) } });
    expect(request.session?.parentId).toBeUndefined();
  });
});
