/** What may follow a manifest in a store, whoever commits. */
import { decodeManifest, type Manifest } from "../../storage/manifest.ts";
import { decodeTombstone, isTombstone, type Tombstone } from "../../storage/tombstone.ts";
import type { SimChange } from "./sim-store.ts";

/**
 * A manifest that is in force is followed by the next generation and by nothing else: no commit is undone by another that did not know of it. Nor is it
 * followed by its own beginning. @returns what is wrong
 */
export function commitProblem({ key, before, after, misread }: SimChange): string | undefined {
  if (!key.includes("/session/") || before === undefined || misread) return undefined;
  const [old, now] = [intactCommit(before), intactCommit(after)];
  if (!old || !now || Buffer.compare(before, after) === 0) return undefined;
  if (now.generation !== old.generation + 1)
    return `a manifest of generation ${old.generation} was replaced by one of generation ${now.generation}`;
  if (!("segments" in old) || !("segments" in now) || now.tokenCount >= old.tokenCount || now.tail) return undefined;
  const isBeginning = now.segments.every(({ chain }, index) => chain === old.segments[index]?.chain);
  return isBeginning ? `a manifest of ${old.tokenCount} tokens was replaced by its first ${now.tokenCount}` : undefined;
}

/** What a commit says; undefined for damaged bytes. */
export function intactCommit(bytes: Uint8Array): Manifest | Tombstone | undefined {
  try {
    return isTombstone(bytes) ? decodeTombstone(bytes) : decodeManifest(bytes);
  } catch {
    return undefined;
  }
}
