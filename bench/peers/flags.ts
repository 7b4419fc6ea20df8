/** Flags of the comparison with peers. */
import { parseBudget, parseInteger, parseSelectionFlag, parseText } from "../../cli/flags.ts";
import { contextsFlag, modelFlags } from "../decode/flags.ts";

/** Where the peers are, and what is compared. */
export const peersFlags = {
  ...modelFlags,
  "llama-bench": {
    help: "llama.cpp's llama-bench, as a peer",
    placeholder: "PATH",
    parse: parseText,
  },
  modules: {
    help: "node_modules folder to look for node-llama-cpp in (default: the repository's)",
    placeholder: "DIR",
    parse: parseText,
  },
  gguf: {
    help: "the peers' model, of the same shape; see make-shape (required)",
    placeholder: "PATH",
    parse: parseText,
  },
  policy: { help: "the policy that selects", placeholder: "SELECTION", fallback: "quest", parse: parseSelectionFlag },
  beside: {
    help: "a selection that is measured beside it, with ratios of its own; of heads(SHARE), heads drawn by the seed retrieve",
    placeholder: "SELECTION",
    fallback: "quest+layer-budgets(12)+heads(0.125)",
    parse: parseSelectionFlag,
  },
  budget: { help: "the budget of either in tokens", placeholder: "TOKENS", fallback: "2048", parse: parseBudget },
  contexts: contextsFlag("0,4096,16384,32768,65536"),
  "peer-contexts": contextsFlag("0,16384,32768"),
  prefill: {
    help: "tokens of the prompt",
    placeholder: "COUNT",
    fallback: "2048",
    parse: parseInteger({ min: 1, max: 131_072 }),
  },
  tokens: {
    help: "tokens decoded per measurement",
    placeholder: "COUNT",
    fallback: "16",
    parse: parseInteger({ min: 1, max: 4096 }),
  },
  rounds: {
    help: "how often both sides are measured, in turns",
    placeholder: "COUNT",
    fallback: "3",
    parse: parseInteger({ min: 1, max: 100 }),
  },
} as const;
