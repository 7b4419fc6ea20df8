/** The flags of `quire start`. */
import { engineFlags } from "./engine-flags.ts";
import { parseBudget, parseChoice, parsePort, parseSelectionFlag, parseText } from "./flags.ts";

/** Where the edge and the engine listen, where the data lies, and how requests select by default. */
export const startFlags = {
  port: {
    help: "port of the edge, for clients; 0 takes a free one",
    placeholder: "PORT",
    env: "QUIRE_PORT",
    fallback: "8787",
    parse: parsePort,
  },
  "engine-port": {
    help: "port of the engine; 0 takes a free one",
    placeholder: "PORT",
    env: "QUIRE_ENGINE_PORT",
    fallback: "8790",
    parse: parsePort,
  },
  host: {
    help: "address on which the edge listens; the engine stays on 127.0.0.1",
    placeholder: "ADDRESS",
    env: "QUIRE_HOST",
    fallback: "127.0.0.1",
    parse: parseText,
  },
  data: {
    help: "folder of secrets, sessions, pages and logs",
    placeholder: "FOLDER",
    env: "QUIRE_DATA",
    fallback: ".data",
    parse: parseText,
  },
  policy: {
    help: "selection of requests that name none: a policy, or one with modifiers such as quest+scope(layer)",
    placeholder: "SELECTION",
    env: "QUIRE_POLICY",
    parse: parseSelectionFlag,
  },
  budget: {
    help: "tokens that a step attends to, for requests that name none",
    placeholder: "TOKENS",
    env: "QUIRE_BUDGET",
    parse: parseBudget,
  },
  exact: {
    help: "wait for missing pages, for requests that do not say: true or false",
    placeholder: "BOOL",
    env: "QUIRE_EXACT",
    parse: parseChoice(["true", "false"]),
  },
  ...engineFlags,
} as const;
