/** What a life's engines are like, and what befalls them how often: drawn by its seed before anything begins. */
import type { StoredEncoding } from "../../../storage/geometry.ts";
import { uniform } from "../../engine/tiny-model.ts";
import type { StackOptions } from "./stack.ts";

/** Within what signatures allow (`LIMITS.signatureSkewMsMax`). */
const SKEW_MS_MAX = 12_000;

/** For every conversation, for some of them, for one with what is set aside beside it, and for none without host memory. */
const ROOM: readonly (readonly [poolMib: number, hostMib: number])[] = [
  [16, 64],
  [6, 0],
  [3, 4],
  [2, 16],
];

/** What changes when something is done, and nothing that is said. */
const HABITS = [...[[], [], [], ["--threads=2"], ["--pace=20"], ["--fill-bytes=1M"], ["--fill-bytes=1M", "--pace=40"]]];

const MORE_SUMMARIES = "min-max,mean-deviation,centre-deviation,sign-bits";

/** Of one life. */
export interface Nature extends Omit<StackOptions, "signal"> {
  /** Pages of its engines. */
  kinds: readonly StoredEncoding[];
  /** Nobody but engines deletes objects from the store, or puts any there. */
  isStoreAlone: boolean;
  /** Of pauses between disturbances: 1, or less. */
  pace: number;
  /** For people. */
  words: string;
}

/** Of a seed's life. */
export function natureOf(seed: number): Nature {
  const choose = uniform(seed * 7_919 + 1);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(choose() * list.length)] as T;
  const kinds = pick([["int8"], ["int8"], ["int4"], ["f16"], ["int8", "int4"]] as const);
  // Engines that keep other kinds of summaries share nothing in the store.
  const summaries = pick([[], [], [`--summaries=${MORE_SUMMARIES}`]]);
  const engine = () => [...engineArgsOf(pick<StoredEncoding>(kinds), pick), ...summaries];
  const alike = engine();
  // In two lives of five each engine is of its own kind, in one of three their clocks differ.
  const isVaried = kinds.length > 1 || choose() < 0.4;
  const isSkewed = choose() < 0.33;
  const diskCacheBytes = pick([undefined, undefined, 1_000_000, 100_000_000]);
  const turnsConcurrent = pick([16, 16, 3]);
  const isStoreAlone = choose() < 0.4;
  const pace = pick([1, 1, 0.4]);
  const engines = `${alike.join(" ")}${isVaried ? " or others" : ""}${isSkewed ? ", clocks differ" : ""}`;
  const rest = `disk cache ${diskCacheBytes}, ${turnsConcurrent} at once${isStoreAlone ? ", store left alone" : ""}`;
  return {
    ...{ kinds, isStoreAlone, pace, diskCacheBytes, turnsConcurrent },
    engineArgs: isVaried ? engine : () => alike,
    skewMs: () => (isSkewed ? Math.round(SKEW_MS_MAX * (2 * choose() - 1)) : 0),
    words: `${engines}, ${rest}`,
  };
}

function engineArgsOf(pages: StoredEncoding, pick: <T>(list: readonly T[]) => T): string[] {
  // Pages of f16 are f32 in the pool.
  const [kv, scale] = pages === "f16" ? ["f32", 4] : ["int8", 1];
  const [poolMib, hostMib] = pick(ROOM);
  return [
    ...[
      `--page-encoding=${pages}`,
      `--kv=${kv}`,
      `--pool-bytes=${scale * poolMib}M`,
      `--host-pool-mib=${scale * hostMib}`,
    ],
    ...pick(HABITS),
    ...[`--reserve=${pick(["prompt", "prompt", "full"])}`, `--resume=${pick(["lazy", "lazy", "full", "auto"])}`],
  ];
}
