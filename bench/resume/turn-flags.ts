/** Flags that the benchmarks of resumed turns share. */
import { parseInteger, parseSelectionFlag, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { parseBudgetTokens } from "../decode/flags.ts";

/** A flag that is a whole number. */
export const countFlag = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

function parseKeys(text: string): "random" | "drift" {
  if (text === "random" || text === "drift") return text;
  throw new UsageError("must be random or drift");
}

/** What a session is about. */
export const contentFlags = {
  text: {
    help: "a text file that a --model reads as its context and prompts; without it KV and tokens are seeded",
    placeholder: "PATH",
    parse: parseText,
  },
  keys: {
    help: "seeded keys: drift (a part stays for some hundred tokens, a part is common, as a text's keys are) or random (alike everywhere: queries choose all over the context, the worst case)",
    placeholder: "KIND",
    fallback: "drift",
    parse: parseKeys,
  },
} as const;

/** What the measured turns of a stored session attend to. */
export const turnFlags = ({ turns, budget }: { turns: string; budget: string }) =>
  ({
    policy: {
      help: `selection of ${turns}`,
      placeholder: "NAME",
      fallback: "quest+scope(layer)+group(64)",
      parse: parseSelectionFlag,
    },
    budget: {
      help: "tokens that a step attends to",
      placeholder: "TOKENS",
      fallback: budget,
      parse: parseBudgetTokens,
    },
  }) as const;

/** How far away the store is. */
export const linkFlags = {
  rtt: countFlag("milliseconds that a call of the store takes", "30", { min: 0, max: 10_000 }),
  mbps: countFlag("megabytes a second from the store, all calls together (not megabits)", "200", {
    min: 1,
    max: 1_000_000,
  }),
} as const;
