/** Whose a block is: the sessions that have used it. One that is deleted takes with it what was its alone; prefixes that others share stay theirs. */
import { detached } from "../../protocol/detached.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** Of more sessions a block is everybody's, until it gives way. */
const OWNERS_MAX = 8;
/** Who uses a block without a session: it is nobody's alone any more. */
const ANYBODY = "";

/** Notes that a session (undefined: a request without one) has used a block. */
export function own(block: LogicalBlock, sessionKey: string | undefined): void {
  const owner = sessionKey ?? ANYBODY;
  if (block.owners.length > OWNERS_MAX || block.owners.includes(owner)) return;
  block.owners.push(detached(owner));
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
