/** The demonstration's plot: three questions about one passage, and what may happen to the engine and the pages between them. */
import { randomUUID } from "node:crypto";
import type { SelectionConfiguration } from "../protocol/generate.ts";
import type { Session, Usage } from "../sdk/index.ts";
import { demoPassage, demoQuestions } from "./demo-passage.ts";
import type { Persisted, Stage } from "./demo-stage.ts";

/** Tokens that a step may attend to: less than an eighth of the context. */
export const demoBudgetTokens = 256;

/** One turn as it went. */
export interface Turn {
  text: string;
  usage: Usage;
  latencyMs: number;
}

/** What happened between the second and the third turn, and the third turn. */
export interface Ending {
  name: "restarted" | "second-engine" | "segment-deleted" | "byte-flipped";
  turn: Turn;
  /** What was stored of the session when its engine was killed. */
  persisted: Persisted;
}

/** Everything that one run showed. */
export interface ResumeOutcome {
  policy: SelectionConfiguration;
  /** Three turns without any harm. */
  undisturbed: Turn[];
  /** Turns 1 and 2 of the conversations that are harmed, in the order of `endings`. */
  before: Turn[][];
  killedPid: number;
  endings: Ending[];
}

/** Told what is going on, for people who watch. */
export interface Audience {
  step(text: string): void;
  turn(session: string, index: number, turn: Turn): void;
  /** Of all conversations, when the store holds them as a whole. */
  persisted(sessions: readonly Persisted[], storedBytes: number): void;
}

const endingNames = ["restarted", "second-engine", "segment-deleted", "byte-flipped"] as const;

/** Bytes are tokens; one begin token and one role token stand in front of the passage. */
const lastFactToken = 2 + demoPassage.indexOf("Badoru");

/** The three turns on an engine with nothing in memory or store, and then the harm. Leaves the stage without an engine. */
export async function playResume(
  stage: Stage,
  policy: SelectionConfiguration,
  audience: Audience,
): Promise<ResumeOutcome> {
  const open = (id: string): Session =>
    stage.client.session({ id, temperature: 0, selection: { policy, budgetTokens: demoBudgetTokens, exact: true } });
  const run = randomUUID().slice(0, 8);

  audience.step("An engine that nobody kills answers three questions");
  await stage.startEngine();
  const calm = open(`calm-${run}`);
  const undisturbed: Turn[] = [];
  for (const index of demoQuestions.keys()) undisturbed.push(await ask(calm, index, audience));
  await stage.killEngine();
  await stage.emptyStore();

  audience.step("All pages are deleted; a new engine answers two questions in four talks");
  await stage.startEngine();
  const sessions = endingNames.map((name) => open(`${name}-${run}`));
  const before: Turn[][] = [];
  for (const session of sessions) before.push([await ask(session, 0, audience), await ask(session, 1, audience)]);
  const persisted = await Promise.all(
    sessions.map((session, index) => stage.untilPersisted(session.id, tokensOf(before[index]?.[1]))),
  );
  audience.persisted(persisted, await stage.storedBytes());
  const killedPid = await stage.killEngine();
  audience.step(`kill -9 ${killedPid}: the engine is gone, and with it all that it had in memory`);

  const endings: Ending[] = [];
  for (const [index, name] of endingNames.entries()) {
    const session = sessions[index] as Session;
    audience.step(captions[name]);
    if (name === "segment-deleted") await stage.deleteSegment(session.id, lastFactToken);
    if (name === "byte-flipped") await stage.flipByte(session.id, 0);
    await stage.startEngine(name === "second-engine" ? "another" : "again");
    const turn = await ask(session, 2, audience);
    endings.push({ name, turn, persisted: persisted[index] as Persisted });
    // What was damaged is whole again, so that the next ending has its own harm only.
    await stage.untilPersisted(session.id, tokensOf(turn));
    await stage.killEngine();
  }
  await stage.emptyStore();
  return { policy, undisturbed, before, killedPid, endings };
}

const captions: Record<Ending["name"], string> = {
  restarted: "The engine is started again",
  "second-engine": "That one is killed, too; a second engine on another port takes over",
  "segment-deleted": "Killed; the segment with the answer is deleted from the store; started",
  "byte-flipped": "Killed; one bit of the first segment is flipped in the store; started",
};

/** Tokens of a session after a turn: all of them should be reused by the next. */
export function tokensOf(turn: Turn | undefined): number {
  return turn === undefined ? 0 : turn.usage.promptTokens + turn.usage.completionTokens;
}

async function ask(session: Session, index: number, audience: Audience): Promise<Turn> {
  const startMs = performance.now();
  const reply = session.send((index === 0 ? demoPassage : "") + (demoQuestions[index]?.question ?? ""));
  const turn = { text: await reply.text(), usage: await reply.usage, latencyMs: performance.now() - startMs };
  audience.turn(session.id, index, turn);
  return turn;
}
