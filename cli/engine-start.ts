/** What an engine's process is started with. It is data, since `bin/quire.mjs` reads it on a Node that runs no TypeScript, too. */
import start from "./engine-start.json" with { type: "json" };

/**
 * V8's young generation has one size from the start. Left to itself it doubles whenever many objects outlive a collection, up to 128 MiB, and is cut at
 * the next full one: on a large machine an engine's resident memory went up and down in steps of that, at moments that nothing of the load told.
 * Two halves of 16 MiB are filled in a tenth of a second of decoding for 16 sequences.
 */
export const ENGINE_NODE_FLAGS: readonly string[] = start.nodeFlags;

/**
 * Variables that glibc's malloc reads when a process starts; what the user has set of them stands (other systems know none of them). Buffers from 128 KiB on
 * (segments, summaries, what waits to be written) get pages of their own, which go back to the system with them. Left to itself malloc takes the largest that
 * was ever freed, up to 32 MiB, for small, and keeps its room.
 */
export const ENGINE_ENVIRONMENT: Readonly<Record<string, string>> = start.environment;
