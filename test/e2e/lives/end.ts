/** What must hold when all is said and nothing is disturbed any more. */
import { setTimeout as sleep } from "node:timers/promises";
import { engineRest } from "../../../bench/load/rest.ts";
import { listSessions } from "../../../storage/session-list.ts";
import { Verifier } from "../../../storage/verify.ts";
import { Client } from "./client.ts";
import { type Conversation, Violation } from "./conversation.ts";
import type { LifeWorld } from "./life.ts";
import { DENSE } from "./twin.ts";

const SETTLE_MS = 60_000;

/** @throws {Violation} */
export async function checkEnd(world: LifeWorld, conversations: readonly Conversation[]): Promise<void> {
  const { stack } = world;
  while (stack.engines.length < 2) await stack.addEngine();
  for (const conversation of conversations.filter(({ isOver, sessionId }) => !isOver && sessionId !== undefined))
    await talkOn(conversation);
  await checkOthers(world, conversations);
  if (world.report.edgesKilled === 0) await checkPlaces(world);
  const engines = stack.engines.map(({ url }, index) => ({ name: `engine ${index}`, url }));
  for (const rest of await engineRest(engines, AbortSignal.timeout(SETTLE_MS))) {
    if (rest.busy + rest.leakedBlocks + rest.leakedSlots > 0)
      throw new Violation(`an idle engine holds ${JSON.stringify(rest)}`);
  }
  if (!world.isStoreTouched) await checkStore(world);
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

/** @throws {Violation} where a key still works */
export async function checkRevoked({ stack, report }: LifeWorld, key: string): Promise<void> {
  const refused = await new Client(() => stack.url, key).ask("GET", "/v1/models");
  if (refused?.status !== 401) throw new Violation(`a revoked key is answered ${refused?.status}`);
  report.keysRevoked += 1;
}

/** Two calm turns: the first is the twin's, and behind it nothing is computed again. */
async function talkOn(conversation: Conversation): Promise<void> {
  for (let index = 0; index < 2; index++) {
    const sent = [{ role: "user" as const, content: "And then?" }];
    const turn = { sent, isWhole: false, manner: DENSE, exact: true, hasLogprobs: false, isStream: false };
    const kept = conversation.known?.ids.length;
    const endMs = performance.now() + SETTLE_MS;
    for (;;) {
      const quire = { session_id: conversation.sessionId, selection: { policy: "dense", exact: true } };
      const body = { model: "house-0", messages: sent, temperature: 0, seed: 1, max_tokens: DENSE.tokensMax, quire };
      const outcome = await conversation.client.send("/v1/chat/completions", body);
      if (outcome.kind === "done") {
        await conversation.take([{ turn, outcome, isEdgeLost: false }]);
        const again = outcome.usage.quire.recomputed_tokens ?? 0;
        if (index === 1 && again > 0)
          conversation.fail(`${again} tokens of ${kept} were computed again though nothing was lost`);
        break;
      }
      if (performance.now() > endMs) conversation.fail(`has not come to rest: ${JSON.stringify(outcome)}`);
      await sleep(250);
    }
  }
  await conversation.look();
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
