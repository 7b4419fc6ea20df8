/** `npm run bench -- soak`: many sessions for long, clients that leave, engines that are killed; nothing may be wrong, lost, leaked or grow. */
import { type Bench, defineBench } from "../bench.ts";
import { atMost, type Bar } from "./bars.ts";
import { type LoadValues, loadFlags } from "./flags.ts";
import { runLoad } from "./load.ts";
import { type LoadResult, leakedCount } from "./report.ts";

/** Resident memory of what lives through the run may grow so much from its first to its last third. */
const GROWTH_MAX = 0.05;
/** And what JavaScript keeps behind a collection by so many MiB: a leak of a few hundred bytes a turn, of which resident memory says nothing. */
const HEAP_GROWTH_MIB_MAX = 2;

/** The load test's flags with other defaults. */
const flags = {
  ...loadFlags,
  users: { ...loadFlags.users, fallback: "64" },
  duration: { ...loadFlags.duration, fallback: "600" },
  abort: { ...loadFlags.abort, fallback: "0.1" },
  engines: { ...loadFlags.engines, fallback: "3" },
  spare: { ...loadFlags.spare, fallback: "1" },
  "kill-every": { ...loadFlags["kill-every"], fallback: "60" },
  tenants: { ...loadFlags.tenants, fallback: "1,1,1,1" },
  verify: { ...loadFlags.verify, fallback: "100" },
  threads: { ...loadFlags.threads, fallback: "1" },
  // As the SDK does where nobody says otherwise.
  retries: { ...loadFlags.retries, fallback: "3" },
  // Dead objects that V8 has not collected yet grow and shrink as it likes: what is kept is seen behind a collection.
  collect: { ...loadFlags.collect, fallback: "20" },
  // Small, so that they are full long before the end: a pool that is still filling grows.
  "pool-bytes": { ...loadFlags["pool-bytes"], fallback: "32M" },
  "host-pool-mib": { ...loadFlags["host-pool-mib"], fallback: "32" },
} as const;

/** The benchmark as the registry names it. */
export const soakBench: Bench = defineBench({
  summary:
    "The load test for long: 64 users, 10 % of turns left by their clients, an engine killed each minute (the first is spared: its memory is that\n" +
    "of the whole run). Bars: no wrong text, no lost turn, no leaked block, memory flat within 5 %. With --url one tenant, no engine is killed, and\n" +
    "leaks and memory are not judged.",
  flags,
  run: (values, context) => runLoad(forTarget(values), context, soakBars),
});

/** Of a target that runs already there are no engines to kill, and one key. */
function forTarget(values: LoadValues): LoadValues {
  if (values.url === undefined) return values;
  return { ...values, engines: 1, spare: 0, "kill-every": undefined, tenants: [1] };
}

/** What a soak has to meet: of a target that is not its own only what its clients see. */
export function soakBars({ totals, settings }: LoadResult): Bar[] {
  const { verification, memory } = totals;
  const isOwn = settings.url === undefined;
  const wrong = verification && verification.wrong.length + verification.failed;
  const growths = memory.flatMap(({ name, growth }) =>
    growth === undefined || name === "generator" ? [] : [{ name, growth }],
  );
  return [
    atMost("wrong texts", verification?.turnsCompared ? wrong : undefined, 0),
    atMost("lost turns", totals.turns.completed > 0 ? totals.lostTurns + totals.refusals : undefined, 0),
    ...(isOwn ? [atMost("leaked blocks and slots at rest", leakedCount(totals), 0)] : []),
    ...(isOwn && growths.length === 0 ? [atMost("growth of memory", undefined, GROWTH_MAX)] : []),
    ...growths.map(({ name, growth }) => atMost(`growth of memory, ${name}`, growth, GROWTH_MAX)),
    ...memory.flatMap(({ name, firstThirdHeapBytes: first, lastThirdHeapBytes: last }) => {
      if (name === "generator" || first === undefined || last === undefined) return [];
      const whose = name === "edge" ? "the edge's" : `${name}'s`;
      return [atMost(`growth of ${whose} heap in use, MiB`, (last - first) / 2 ** 20, HEAP_GROWTH_MIB_MAX)];
    }),
  ];
}
