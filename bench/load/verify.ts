/**
 * Whether a loaded target says what it says alone: sessions of the run are played again, one after the other, and the greedy texts compared. Company,
 * chunks and losses must not change a word, so a difference is a fault of the target. They are played for a tenant of their own, so that nothing
 * the run has left is read; an edge that was there before has one tenant only.
 */
import { REFERENCE_TENANT, type Target } from "./target.ts";
import type { Script } from "./workload.ts";

/** A session of the run: what was said, as far as it went. */
export interface PlayedSession {
  script: Script;
  replies: readonly string[];
}

/** A turn whose text was another one under load. */
export interface WrongText {
  session: number;
  turn: number;
  loaded: string;
  alone: string;
}

/** What the comparison found. */
export interface Verification {
  sessionsCompared: number;
  turnsCompared: number;
  /** Sessions that could not be played again, and why the first of them could not. */
  failed: number;
  firstFailure?: string;
  wrong: WrongText[];
}

/** Spread over the run, at most `count`. */
export function chooseSessions(played: readonly PlayedSession[], count: number): PlayedSession[] {
  const step = Math.max(1, played.length / Math.max(1, count));
  const chosen = Array.from({ length: Math.min(count, played.length) }, (_, i) => played[Math.floor(i * step)]!);
  return [...new Set(chosen)];
}

/** Plays sessions alone; `turnMsMax` per turn. Ends early when the user stops it. */
export async function verify(
  target: Target,
  sessions: readonly PlayedSession[],
  options: { turnMsMax: number; signal: AbortSignal },
): Promise<Verification> {
  const found: Verification = { sessionsCompared: 0, turnsCompared: 0, failed: 0, wrong: [] };
  for (const session of sessions) {
    if (options.signal.aborted) break;
    try {
      await replay(target, session, found, options);
      found.sessionsCompared += 1;
    } catch (error) {
      found.failed += 1;
      found.firstFailure ??= `session ${session.script.index}: ${error instanceof Error ? error.message : String(error)}`;
    }
  }
  return found;
}

async function replay(
  target: Target,
  { script, replies }: PlayedSession,
  found: Verification,
  { turnMsMax, signal }: { turnMsMax: number; signal: AbortSignal },
): Promise<void> {
  const conversation = target.openConversation(REFERENCE_TENANT);
  for (const [turn, loaded] of replies.entries()) {
    let alone = "";
    const onText = (delta: string): void => {
      alone += delta;
    };
    const stop = AbortSignal.any([signal, AbortSignal.timeout(turnMsMax)]);
    await conversation.send({ text: script.turns[turn]!.text, signal: stop, onText });
    found.turnsCompared += 1;
    if (alone !== loaded) {
      found.wrong.push({ session: script.index, turn, loaded, alone });
      return;
    }
  }
}
