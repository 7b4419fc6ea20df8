/** What Node is started with to run an engine. The flags are data, since `bin/quire.mjs` reads them on a Node that runs no TypeScript, too. */
import flags from "./engine-node-flags.json" with { type: "json" };

/**
 * V8's young generation has one size from the start. Left to itself it doubles whenever many objects outlive a collection, up to 128 MiB, and is cut at
 * the next full one: on a large machine an engine's resident memory went up and down in steps of that, at moments that nothing of the load told.
 * Two halves of 16 MiB are filled in a tenth of a second of decoding for 16 sequences.
 */
export const ENGINE_NODE_FLAGS: readonly string[] = flags;
