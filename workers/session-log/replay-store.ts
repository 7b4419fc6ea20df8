/** The events of a session's last resumable turn in its storage: its stream can be resumed also when the object has started again since. */
import { encodeFrame } from "../../protocol/frames.ts";
import type { AnswerHead } from "../turn-job.ts";
import { dropParts, partsOf, readParts } from "./kept-bytes.ts";
import type { NumberedEvent } from "./replay-buffer.ts";
import { unpackValue } from "./wire.ts";

/** A finished turn, whole. */
export interface StoredReplay {
  streamId: string;
  idempotencyKey?: string | undefined;
  bodyDigest?: string | undefined;
  head: AnswerHead;
  numericsId: string;
  endedMs: number;
  /** From this number on nothing is missing in `events`. */
  first: number;
  events: readonly NumberedEvent[];
}

const NAME = "replay";

/** Replaces what was kept of an earlier turn. */
export function keepReplay(storage: DurableObjectStorage, replay: StoredReplay): void {
  dropReplay(storage);
  const parts = Object.entries(partsOf(NAME, encodeFrame(replay)));
  for (const [key, bytes] of parts) storage.kv.put(key, bytes);
}

/** What is kept; undefined when there is nothing. */
export function readReplay(storage: DurableObjectStorage): StoredReplay | undefined {
  const bytes = readParts(storage, NAME);
  return bytes && unpackValue<StoredReplay>(bytes);
}

/** Forgets what is kept. */
export function dropReplay(storage: DurableObjectStorage): void {
  dropParts(storage, NAME);
}
