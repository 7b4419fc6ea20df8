/** What must hold when all is said and nothing is disturbed any more. */
import { setTimeout as sleep } from "node:timers/promises";
import { engineRest } from "../../../bench/load/rest.ts";
import { listSessions } from "../../../storage/session-list.ts";
import { Verifier } from "../../../storage/verify.ts";
import { type AnswerUsage, Client } from "./client.ts";
import { type Conversation, Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import { DENSE } from "./twin.ts";

const SETTLE_MS = 60_000;

/** @throws {Violation} */
export async function checkEnd(world: LifeWorld, conversations: readonly Conversation[]): Promise<void> {
  const { stack } = world;
  while (stack.engines.length < 2) await stack.addEngine();
  for (const conversation of conversations.filter(({ isOver, sessionId }) => !isOver && sessionId !== undefined))
    await talkOn(world, conversation);
  await checkOthers(world, conversations);
  if (world.report.edgesKilled === 0) await checkPlaces(world);
  const engines = stack.engines.map(({ url }, index) => ({ name: `engine ${index}`, url }));
  for (const rest of await engineRest(engines, AbortSignal.timeout(SETTLE_MS))) {
    if (rest.busy + rest.leakedBlocks + rest.leakedSlots > 0)
      throw new Violation(`an idle engine holds ${JSON.stringify(rest)}`);
  }
  if (!world.isStoreAlone) return;
  await checkStore(world);
  if (!world.twins.isMixed) await checkDurable(world, conversations);
}

/** What nobody collected is whole: a manifest names nothing that is not there. @throws {Violation} */
export async function checkStore({ stack, report }: LifeWorld): Promise<void> {
  const verifier = new Verifier(stack.store);
  for await (const { key } of listSessions(stack.store, "kv/")) {
    const { problems, sessionId } = await verifier.session(key);
    if (problems.length > 0) throw new Violation(`${sessionId} is stored with ${JSON.stringify(problems)}`);
    report.storedWhole += 1;
  }
}

/** What the edge calls durable comes from the store when every engine is gone, and is not computed again. @throws {Violation} */
async function checkDurable(world: LifeWorld, conversations: readonly Conversation[]): Promise<void> {
  const { stack, report } = world;
  const isAsked = ({ known, isOver, sessionId }: Conversation) =>
    !isOver && sessionId !== undefined && known?.isApproximate === false;
  const asked = conversations.filter(isAsked).slice(0, 6);
  const kept = await Promise.all(asked.map((conversation) => untilDurable(conversation)));
  const engines = [...stack.engines];
  await Promise.all(engines.map((engine) => stack.killEngine(engine)));
  await stack.addEngine();
  for (const [index, conversation] of asked.entries()) {
    const { prompt_tokens_details, quire } = await talk(conversation, "lazy");
    const cached = prompt_tokens_details.cached_tokens;
    const stored = kept[index] ?? 0;
    if (cached < stored)
      conversation.fail(`of ${stored} durable tokens ${cached} were found: ${JSON.stringify(quire)}`);
    report.durableTokens += stored;
  }
}

/** @returns how many tokens are, when nothing waits to be written */
async function untilDurable(conversation: Conversation): Promise<number> {
  const { client, sessionId } = conversation;
  for (const endMs = performance.now() + SETTLE_MS; performance.now() < endMs; ) {
    const answer = await client.ask("GET", `/v1/sessions/${sessionId}`);
    const { persist_pending: isPending, persisted_tokens: tokens } = answer?.body ?? {};
    if (answer?.status === 200 && isPending === false) return Number(tokens);
    await sleep(250);
  }
  return conversation.fail("is not durable in a minute of rest");
}

/** @throws {Violation} where a key still works */
export async function checkRevoked({ stack, report }: LifeWorld, key: string): Promise<void> {
  const refused = await new Client(() => stack.url, key).ask("GET", "/v1/models");
  if (refused?.status !== 401) throw new Violation(`a revoked key is answered ${refused?.status}`);
  report.keysRevoked += 1;
}

/** Two calm turns: the first is the twin's, and behind it nothing is computed again. */
async function talkOn({ twins }: LifeWorld, conversation: Conversation): Promise<void> {
  for (let index = 0; index < 2; index++) {
    const kept = conversation.known?.ids.length;
    const again = (await talk(conversation)).quire.recomputed_tokens ?? 0;
    // An engine of another kind has nothing of it.
    if (index === 1 && again > 0 && !twins.isMixed)
      conversation.fail(`${again} tokens of ${kept} were computed again though nothing was lost`);
  }
  await conversation.look();
}

/** A calm turn, which is the twin's. */
async function talk(conversation: Conversation, resume?: string): Promise<AnswerUsage> {
  const sent = [{ role: "user" as const, content: "And then?" }];
  const turn = { sent, isWhole: false, manner: DENSE, exact: true, hasLogprobs: false, isStream: false };
  const selection = { policy: "dense", exact: true };
  const quire = { session_id: conversation.sessionId, selection, ...(resume === undefined ? {} : { resume }) };
  const body = { model: "house-0", messages: sent, temperature: 0, seed: 1, max_tokens: DENSE.tokensMax, quire };
  for (const endMs = performance.now() + SETTLE_MS; ; ) {
    const outcome = await conversation.client.send("/v1/chat/completions", body);
    if (outcome.kind === "done") {
      await conversation.take([{ turn, outcome, isEdgeLost: false }]);
      return outcome.usage;
    }
    if (performance.now() > endMs) conversation.fail(`has not come to rest: ${JSON.stringify(outcome)}`);
    await sleep(250);
  }
}

/** Of another tenant nothing is found, and of deleted sessions nobody finds anything. */
async function checkOthers(world: LifeWorld, conversations: readonly Conversation[]): Promise<void> {
  const { clients } = world;
  for (const { tenant, sessionId } of world.deleted) {
    const answer = await clients[tenant].ask("GET", `/v1/sessions/${sessionId}`);
    if (answer?.status !== 404) throw new Violation(`the deleted session ${sessionId} is answered ${answer?.status}`);
  }
  const asked = conversations.find(
    ({ known, isOver }) => !isOver && (known?.turnCount ?? 0) > 0 && (known?.ids.length ?? 0) > 200,
  );
  if (!asked?.known) return;
  const path = `/v1/sessions/${asked.sessionId}`;
  for (const [method, at] of [
    ["GET", path],
    ["DELETE", path],
    ["POST", `${path}/fork`],
    ["GET", `${path}/stream`],
  ] as const) {
    const answer = await clients.strangers.ask(method, at, method === "POST" ? {} : undefined);
    if (answer?.status !== 404) throw new Violation(`${method} ${at} of a stranger is answered ${answer?.status}`);
  }
  const messages = asked.known.messages.map(({ role, content }) => ({ role, content }));
  const body = { model: "house-0", messages: messages.slice(0, -1), temperature: 0, max_tokens: 2 };
  const outcome = await clients.strangers.send("/v1/chat/completions", body);
  const cached = outcome.kind === "done" ? outcome.usage.prompt_tokens_details.cached_tokens : undefined;
  if (cached !== 0)
    throw new Violation(`a stranger who sends ${asked.name} finds ${cached} tokens: ${JSON.stringify(outcome)}`);
}

/** As many turns at once as a tenant may run: none of those before has kept its place. */
async function checkPlaces({ clients, stack }: LifeWorld): Promise<void> {
  const endMs = performance.now() + SETTLE_MS;
  for (;;) {
    const body = { model: "house-0", messages: [{ role: "user", content: "?" }], max_tokens: 1 };
    const turns = Array.from({ length: stack.turnsConcurrent }, () => clients.one.send("/v1/chat/completions", body));
    const kinds = (await Promise.all(turns)).map((outcome) => ("code" in outcome ? outcome.code : outcome.kind));
    if (kinds.every((kind) => kind === "done")) return;
    if (performance.now() > endMs) throw new Violation(`of ${stack.turnsConcurrent} turns at once: ${kinds.join(" ")}`);
    await sleep(1_000);
  }
}
