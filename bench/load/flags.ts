/** The flags of the load test. */
import { engineFlags } from "../../cli/engine-flags.ts";
import {
  type FlagValues,
  parseBudget,
  parseChoice,
  parseHttpUrl,
  parseInteger,
  parseRequestedSelectionFlag,
  parseText,
} from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { switchFlag } from "../bench.ts";
import { classBounds } from "./workload.ts";

const VERIFIED_COUNT = 8;
/** More than this is no load test of one generator process. */
const sessionsMax = 100_000;

/** What is put under load, with what, for how long. */
export const loadFlags = {
  target: {
    help: "edge (through the SDK) or engine (token ids in frames, no edge between)",
    placeholder: "KIND",
    fallback: "edge",
    parse: parseChoice(["edge", "engine"]),
  },
  url: {
    help: "a running target; without it one is started on free ports, in a temporary folder, and stopped again",
    placeholder: "URL",
    parse: parseHttpUrl,
  },
  key: {
    help: "API key of the edge, or key of the engine; other users can see flags, so prefer the variable",
    placeholder: "KEY",
    env: "QUIRE_API_KEY",
    parse: parseText,
  },
  rate: {
    help: "sessions that arrive per second (Poisson)",
    placeholder: "NUMBER",
    fallback: "1",
    parse: parseNumber({ min: 0.001, max: 1_000 }),
  },
  users: {
    help: "closed loop: so many users, each begins a session when the one before is over (instead of --rate)",
    placeholder: "COUNT",
    parse: parseInteger({ min: 1, max: 10_000 }),
  },
  bursts: {
    help: "arrivals come in the first quarter of every so many seconds",
    placeholder: "SECONDS",
    parse: parseNumber({ min: 1, max: 600 }),
  },
  tenants: {
    help: "weights of the tenants that sessions belong to, such as 20,1,1,1 (an engine, or an edge of the run's own)",
    placeholder: "LIST",
    fallback: "1",
    parse: parseWeights,
  },
  abort: {
    help: "share of turns whose client goes away, 0.4 s after they were sent in the mean",
    placeholder: "SHARE",
    fallback: "0",
    parse: parseNumber({ min: 0, max: 1 }),
  },
  slow: {
    help: "share of turns whose client takes 50 to 500 ms for each piece of text",
    placeholder: "SHARE",
    fallback: "0",
    parse: parseNumber({ min: 0, max: 1 }),
  },
  verify: {
    help: "sessions that are played again, alone, behind the run: another text fails the run (default: 8, with --url none)",
    placeholder: "COUNT",
    parse: parseInteger({ min: 0, max: 10_000 }),
  },
  "first-token-objective": {
    help: "milliseconds to the first token that users are content with (goodput)",
    placeholder: "MS",
    fallback: "2000",
    parse: parseNumber({ min: 1, max: 600_000 }),
  },
  "per-token-objective": {
    help: "milliseconds per token that users are content with (goodput)",
    placeholder: "MS",
    fallback: "100",
    parse: parseNumber({ min: 1, max: 600_000 }),
  },
  engines: {
    help: "engines that this run starts (edge only)",
    placeholder: "COUNT",
    fallback: "1",
    parse: parseInteger({ min: 1, max: 16 }),
  },
  "kill-every": {
    help: "kill an engine of this run's own every so many seconds (kill -9), each in its turn; it is started again after 2 s, and until it serves no other is killed (edge only)",
    placeholder: "SECONDS",
    parse: parseNumber({ min: 1, max: 3_600 }),
  },
  spare: {
    help: "engines of this run's own that are never killed: their memory is that of the whole run",
    placeholder: "COUNT",
    fallback: "0",
    parse: parseInteger({ min: 0, max: 15 }),
  },
  "first-token-max": {
    help: "milliseconds that clients allow for the first token, and say so: what would come later is refused (engine only)",
    placeholder: "MS",
    parse: parseInteger({ min: 1, max: 600_000 }),
  },
  "obey-retry-after": {
    help: "times that a refused client comes back, each when Retry-After told it to",
    placeholder: "COUNT",
    fallback: "0",
    parse: parseInteger({ min: 0, max: 100 }),
  },
  collect: {
    help: "seconds between two collections of garbage in the processes of the run's own, at most; memory is then read behind them; 0: none",
    placeholder: "SECONDS",
    fallback: "0",
    parse: parseNumber({ min: 0, max: 600 }),
  },
  html: {
    help: "file for a page with plots",
    placeholder: "FILE",
    parse: parseText,
  },
  duration: {
    help: "seconds in which sessions arrive",
    placeholder: "SECONDS",
    fallback: "30",
    parse: parseNumber({ min: 1, max: 3_600 }),
  },
  drain: {
    help: "seconds that sessions may go on behind it; what is unfinished then has failed",
    placeholder: "SECONDS",
    fallback: "60",
    parse: parseNumber({ min: 0, max: 3_600 }),
  },
  "concurrency-max": {
    help: "sessions in progress at once; arrivals beyond it are counted, not sent",
    placeholder: "COUNT",
    fallback: "64",
    parse: parseInteger({ min: 1, max: 10_000 }),
  },
  turns: {
    help: "most turns of a session; each has 1 to so many",
    placeholder: "COUNT",
    fallback: "4",
    parse: parseInteger({ min: 1, max: 100 }),
  },
  think: {
    help: "mean pause in seconds before a later turn",
    placeholder: "SECONDS",
    fallback: "1",
    parse: parseNumber({ min: 0, max: 600 }),
  },
  mix: {
    help: "weights of short (200-1000 characters), medium (1000-4000) and long first prompts",
    placeholder: "S,M,L",
    fallback: "70,25,5",
    parse: parseMix,
  },
  "prompt-chars-max": {
    help: "characters of the longest first prompts",
    placeholder: "COUNT",
    fallback: "12000",
    parse: parseInteger({ min: classBounds.longMin + 1, max: 1_000_000 }),
  },
  "max-tokens": {
    help: "tokens of a reply",
    placeholder: "COUNT",
    fallback: "32",
    parse: parseInteger({ min: 1, max: 4_096 }),
  },
  policy: {
    help: "selection: a policy, or one with modifiers; without it the target's default",
    placeholder: "SELECTION",
    parse: parseRequestedSelectionFlag,
  },
  budget: {
    help: "tokens that a step attends to; without it the target's default",
    placeholder: "TOKENS",
    parse: parseBudget,
  },
  exact: {
    help: "wait for missing pages: true or false; without it the target's default",
    placeholder: "BOOL",
    parse: parseChoice(["true", "false"]),
  },
  seed: {
    help: "of arrivals, lengths, texts and pauses",
    placeholder: "NUMBER",
    fallback: "1",
    parse: parseInteger({ min: 0, max: 2 ** 32 - 1 }),
  },
  warmup: {
    help: "turns before the measurement, one after the other; a failed one ends the run",
    placeholder: "COUNT",
    fallback: "1",
    parse: parseInteger({ min: 0, max: 1_000 }),
  },
  retries: {
    help: "further tries of a turn before its first token (edge only); their time is part of its latency",
    placeholder: "COUNT",
    fallback: "0",
    parse: parseInteger({ min: 0, max: 10 }),
  },
  "turn-timeout": {
    help: "seconds that a turn may take",
    placeholder: "SECONDS",
    fallback: "120",
    parse: parseNumber({ min: 1, max: 600 }),
  },
  "allow-429": switchFlag("refusals for want of room are no failure (they are counted all the same)"),
  ...engineFlags,
} as const;

/** The flags' values. */
export type LoadValues = FlagValues<typeof loadFlags>;

/** How many sessions are played again. */
export function verifiedCount({ verify, url }: LoadValues): number {
  return verify ?? (url === undefined ? VERIFIED_COUNT : 0);
}

/** @throws {UsageError} for flags that are fine alone and not together. */
export function checkTogether(values: LoadValues): void {
  const expected = values.rate * values.duration;
  if (expected > sessionsMax) {
    throw new UsageError(`--rate and --duration make ${Math.round(expected)} sessions, at most ${sessionsMax}`);
  }
  if (values.target === "edge" && values.url !== undefined && values.tenants.length > 1)
    throw new UsageError("--tenants needs --target engine, or an edge of the run's own: a tenant of the edge is a key");
  if (values.target === "edge" && values["first-token-max"] !== undefined)
    throw new UsageError("--first-token-max needs --target engine");
  if (values["kill-every"] !== undefined && values.spare >= values.engines)
    throw new UsageError("--kill-every needs an engine that --spare does not keep from it");
  const asksForOwn = values.engines > 1 || values["kill-every"] !== undefined;
  if (asksForOwn && (values.url !== undefined || values.target === "engine"))
    throw new UsageError("--engines and --kill-every need an edge of the run's own: no --url, no --target engine");
  if (values.url !== undefined && values.target === "edge" && values.key === undefined) {
    throw new UsageError("--url needs the edge's API key: --key or QUIRE_API_KEY");
  }
}

/** A number in a closed range, as a parser for a flag. */
function parseNumber(range: { min: number; max: number }): (text: string) => number {
  return (text) => {
    const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
    if (value >= range.min && value <= range.max) return value;
    throw new UsageError(`must be a number from ${range.min} to ${range.max}`);
  };
}

function parseWeights(text: string): readonly number[] {
  const weights = text.split(",").map((part) => (/^\d+(\.\d+)?$/.test(part) ? Number(part) : Number.NaN));
  if (weights.length <= 64 && weights.every((weight) => weight > 0)) return weights;
  throw new UsageError("must be up to 64 weights above 0, such as 20,1,1,1");
}

function parseMix(text: string): readonly number[] {
  const weights = text.split(",").map((part) => (/^\d+(\.\d+)?$/.test(part) ? Number(part) : Number.NaN));
  const isUsable = weights.length === 3 && weights.every(Number.isFinite) && weights.some((weight) => weight > 0);
  if (isUsable) return weights;
  throw new UsageError("must be three weights such as 70,25,5");
}
