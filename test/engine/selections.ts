/** What conversations of seeded lives ask for, in real time (fault-run.ts) and in simulated (test/sim/mixture.ts). */
import type { SelectionRequest } from "../../protocol/generate.ts";

/** Every token attends to all before it. */
export const DENSE: SelectionRequest = { policy: "dense", budgetTokens: 0, exact: true };
/** Half of the pages of a context of four blocks, waited for. */
export const QUEST: SelectionRequest = { policy: "quest", budgetTokens: 128, exact: true };
/** The same, attended around where they are not there in time. */
export const QUEST_AROUND: SelectionRequest = { ...QUEST, exact: false };
