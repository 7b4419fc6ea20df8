/** Our own client library against a running stack. */
import { expect, inject, it } from "vitest";
import { Quire, QuireAbortError, QuireApiError } from "../../sdk/index.ts";
import { answer, ask, longText, passage } from "./support/words.ts";

const quire = new Quire({ baseUrl: inject("edgeUrl"), apiKey: inject("apiKey") });

async function describeSession(id: string): Promise<{ status: number; body: Record<string, unknown> }> {
  const headers = { authorization: `Bearer ${inject("apiKey")}` };
  const response = await fetch(`${inject("edgeUrl")}/v1/sessions/${id}`, { headers });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

it("lists the models", async () => {
  expect(await quire.models()).toMatchObject([{ id: "house-0", ownedBy: "quire" }]);
});

it("goes on with a conversation of which only the new words are sent", async () => {
  const session = quire.session({ temperature: 0 });
  const deltas: string[] = [];
  const reply = session.send(`At dawn. ${passage}${ask("Badoru")}`);
  for await (const delta of reply) deltas.push(delta);
  expect(deltas.join("")).toBe(answer("Badoru"));
  const first = await reply.usage;
  const second = session.send(ask("Kelino"));
  expect(await second.text()).toBe(answer("Kelino"));
  const usage = await second.usage;
  expect(usage.cachedTokens).toBe(first.promptTokens + first.completionTokens);
  expect(usage.promptTokens).toBe(usage.cachedTokens + ask("Kelino").length + 2);
  expect(usage.quire).toMatchObject({ sessionId: session.id, source: { device: usage.cachedTokens, store: 0 } });
});

it.each([
  ["quest", 4],
  ["mean-deviation", 4],
  ["streaming", 4],
  // Its pages are candidates, four budgets of them; the budget is kept by choosing tokens among theirs.
  ["tokenselect", 1],
  ["dense", 1],
] as const)("selects by %s", async (policy, contextPerSelection) => {
  const selection = { policy, budgetTokens: 256, exact: true };
  // Far more than the budget, the fact near its end, where every policy looks.
  const text = `${policy}. ${longText(1_500)}${passage}${ask("Badoru")}`;
  const reply = quire.session({ temperature: 0, selection }).send(text);
  expect(await reply.text()).toBe(answer("Badoru"));
  const { quire: used } = await reply.usage;
  expect(used).toMatchObject({ policy, budgetTokens: 256, exact: true });
  const { pagesSelected = 0, pagesInContext = 0 } = used;
  if (policy === "dense") expect([pagesSelected, pagesInContext]).toEqual([0, 0]);
  else expect(pagesSelected).toBeGreaterThan(0);
  expect(pagesSelected * contextPerSelection).toBeLessThanOrEqual(pagesInContext);
});

it("forks, and what one says the other does not hear", async () => {
  const session = quire.session({ temperature: 0 });
  await session.send(`At noon. ${passage}${ask("Badoru")}`).text();
  const fork = await session.fork();
  expect(fork.id).not.toBe(session.id);
  expect(await fork.send(ask("Kelino")).text()).toBe(answer("Kelino"));
  const [own, forked] = [await describeSession(session.id), await describeSession(fork.id)];
  expect(own.body).toMatchObject({ turns: 1, parent_id: null });
  expect(forked.body).toMatchObject({ turns: 2, parent_id: session.id });
  const next = session.send(ask("Kelino"));
  expect(await next.text()).toBe(answer("Kelino"));
  expect((await next.usage).promptTokens).toBe(Number(own.body.tokens) + ask("Kelino").length + 2);
});

it("deletes; the name is free again and holds nothing", async () => {
  const session = quire.session({ id: "to-be-deleted", temperature: 0 });
  await session.send(`At dusk. ${passage}${ask("Badoru")}`).text();
  await session.delete();
  expect(await describeSession(session.id)).toMatchObject({
    status: 404,
    body: { error: { code: "session_not_found" } },
  });
  await session.delete();
  const reply = session.send(ask("Badoru"), { maxTokens: 4 });
  await reply.text();
  expect((await reply.usage).promptTokens).toBe(ask("Badoru").length + 3);
});

it("has typed errors, and an abort is one of them", async () => {
  const stranger = new Quire({ baseUrl: inject("edgeUrl"), apiKey: "qk-wrong" });
  await expect(stranger.models()).rejects.toBeInstanceOf(QuireApiError);
  const wrong = quire.session().send("x", { temperature: 3 });
  await expect(wrong.text()).rejects.toMatchObject({ status: 400, param: "temperature" });
  const reply = quire.session().send(longText(20_000));
  setTimeout(() => reply.abort(), 300);
  await expect(reply.text()).rejects.toBeInstanceOf(QuireAbortError);
});
