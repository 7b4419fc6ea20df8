import { parseInteger, parseSelectionFlag } from "../../cli/flags.ts";

/** A flag that is a whole number. */
export const countFlag = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

/** What the measured turn of a stored session is. */
export const turnFlags = {
  policy: {
    help: "selection of the turn",
    placeholder: "NAME",
    fallback: "quest+scope(layer)+group(64)",
    parse: parseSelectionFlag,
  },
  budget: countFlag("tokens that a step attends to", "2048", { min: 128, max: 65_536 }),
} as const;
