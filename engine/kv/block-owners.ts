/** Whose a block is: the sessions that have used it. One that is deleted takes with it what was its alone; prefixes that others share stay theirs. */
import type { LogicalBlock } from "./logical-block.ts";

/** Of more sessions a block is everybody's, until it gives way. */
const OWNERS_MAX = 8;
/** Who uses a block without a session: it is nobody's alone any more. */
export const ANYBODY = "";

/** Notes that a session, or {@link ANYBODY}, has used a block. @param owner kept, so a text of its own (`protocol/detached.ts`) */
export function own(block: LogicalBlock, owner: string): void {
  if (block.owners.length > OWNERS_MAX || block.owners.includes(owner)) return;
  block.owners.push(owner);
}

/** Takes a session off a block's owners. @returns whether it was the only one */
export function disown(block: LogicalBlock, sessionKey: string): boolean {
  const at = block.owners.indexOf(sessionKey);
  if (at === -1) return false;
  // Of a block with one owner too many not all are known.
  if (block.owners.length > OWNERS_MAX) return false;
  block.owners.splice(at, 1);
  return block.owners.length === 0;
}
