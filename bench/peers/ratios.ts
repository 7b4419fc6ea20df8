/** Ratios between this engine and the fastest peer of the same run. */
import type { PeerCase, PeerRow } from "./peer.ts";

/** A measurement of ours: dense, with the policy that is compared, or with the one beside it; both have the same budget. */
export interface OurRow extends Omit<PeerRow, "variant"> {
  selection: "dense" | "select" | "beside";
  msPerToken: number;
}

/** A measurement of a peer. */
export interface NamedPeerRow extends PeerRow {
  peer: string;
}

/** Which of a row's rates is compared: the median, or the best one. */
export type Rate = "tokensPerS" | "tokensPerSBest";

/** Ours over the peer's; above 1 we are faster. The last one has no peer: growth of our own cost per token. Absent: not measured. */
export interface Ratios {
  decode0?: number;
  prefill2k?: number;
  decode16kDense?: number;
  decode16kSelect?: number;
  decode32kSelect?: number;
  /** (ms at 64K - ms at 0) / (ms at 4K - ms at 0) with selection; absent where 4K costs no more than 0. */
  growth4kTo64k?: number;
}

/** Contexts that the names stand for. */
export interface RatioContexts {
  middle: number;
  long: number;
  growthShort: number;
  growthLong: number;
}

/** The ratios of the table. */
export const CONTEXTS: RatioContexts = { middle: 16_384, long: 32_768, growthShort: 4096, growthLong: 65_536 };

/** The rows as they would be with the policy beside the compared one in its place. */
export function besideRows(ours: readonly OurRow[]): OurRow[] {
  return ours
    .filter(({ selection }) => selection !== "select")
    .map((row) => (row.selection === "beside" ? { ...row, selection: "select" } : row));
}

/** Computes what the rows allow. Repeated rows of one case count by their median (`tokensPerS`) or their best (`tokensPerSBest`). */
export function computeRatios(
  ours: readonly OurRow[],
  peers: readonly NamedPeerRow[],
  { rate, contexts }: { rate: Rate; contexts: RatioContexts },
): Ratios {
  const compare = (kind: PeerCase["kind"], contextTokens: number, selection: OurRow["selection"]) => {
    const us = ourRate(ours, { kind, contextTokens, selection }, rate);
    const them = peerRate(peers, { kind, contextTokens }, rate);
    return us === undefined || them === undefined ? undefined : us / them;
  };
  const all = {
    decode0: compare("decode", 0, "dense"),
    prefill2k: compare("prefill", 0, "dense"),
    decode16kDense: compare("decode", contexts.middle, "dense"),
    decode16kSelect: compare("decode", contexts.middle, "select"),
    decode32kSelect: compare("decode", contexts.long, "select"),
    growth4kTo64k: growth(ours, rate, contexts),
  };
  return Object.fromEntries(Object.entries(all).filter(([, ratio]) => ratio !== undefined));
}

function growth(ours: readonly OurRow[], rate: Rate, contexts: RatioContexts): number | undefined {
  const ms = (contextTokens: number, selection: OurRow["selection"]) => {
    const found = ourRate(ours, { kind: "decode", contextTokens, selection }, rate);
    return found === undefined ? undefined : 1000 / found;
  };
  const [empty, short, long] = [ms(0, "dense"), ms(contexts.growthShort, "select"), ms(contexts.growthLong, "select")];
  if (empty === undefined || short === undefined || long === undefined || short <= empty) return undefined;
  return (long - empty) / (short - empty);
}

function ourRate(
  rows: readonly OurRow[],
  item: Pick<OurRow, "kind" | "contextTokens" | "selection">,
  rate: Rate,
): number | undefined {
  const found = rows.filter((row) => isSameCase(row, item) && row.selection === item.selection);
  return summarize(found, rate);
}

/** The fastest peer in its fastest variant. */
function peerRate(
  rows: readonly NamedPeerRow[],
  item: Pick<PeerCase, "kind" | "contextTokens">,
  rate: Rate,
): number | undefined {
  const found = rows.filter((row) => isSameCase(row, item));
  const variants = Map.groupBy(found, ({ peer, variant }) => `${peer}, ${variant}`);
  const rates = [...variants.values()].flatMap((each) => summarize(each, rate) ?? []);
  return rates.length === 0 ? undefined : Math.max(...rates);
}

function summarize(rows: readonly Pick<PeerRow, Rate>[], rate: Rate): number | undefined {
  const rates = rows.map((row) => row[rate]).sort((a, b) => a - b);
  return rate === "tokensPerSBest" ? rates.at(-1) : rates[Math.floor(rates.length / 2)];
}

function isSameCase(a: Pick<PeerCase, "kind" | "contextTokens">, b: Pick<PeerCase, "kind" | "contextTokens">): boolean {
  return a.kind === b.kind && a.contextTokens === b.contextTokens;
}
