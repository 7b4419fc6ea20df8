/** The sessions of a run, made from a seed: when they arrive, what they say, how long they think. */
import { drawExponential, drawOne, drawPareto, drawWeighted, type Random, seededRandom } from "../random.ts";
import { drawFact, drawPassage, type Fact, questionAbout } from "./text.ts";

/** Lengths of first prompts, shortest first. */
export const classNames = ["short", "medium", "long"] as const;

/** One of {@link classNames}. */
export type ClassName = (typeof classNames)[number];

/** Characters of first prompts by class: [least, below]; the long ones end where the settings say. */
export const classBounds = { short: [200, 1_000], medium: [1_000, 4_000], longMin: 4_000 } as const;

/** What a workload is made of. */
export interface WorkloadSettings {
  seed: number;
  ratePerS: number;
  durationS: number;
  turnsMax: number;
  /** Mean of the pause between an answer and the next question. */
  thinkMeanS: number;
  /** Weights of short, medium, long. */
  mix: readonly number[];
  promptCharsMax: number;
  /** Arrivals of bursts: four times the rate for a quarter of each period; undefined: evenly by chance. */
  burstPeriodS?: number | undefined;
  /** Weights of the tenants (default: one). */
  tenants?: readonly number[] | undefined;
  /** Shares of turns whose client goes away, and whose client reads slowly (default 0). */
  abortShare?: number | undefined;
  slowShare?: number | undefined;
}

/** One turn: what is sent, and the fact it asks for. */
export interface ScriptTurn {
  text: string;
  fact: Fact;
  /** From the answer before it to this turn; 0 for the first. */
  thinkMs: number;
  /** The client goes away so long after the turn was sent. */
  abortAfterMs?: number | undefined;
  /** The client takes so long for each piece of text. */
  readMs?: number | undefined;
}

/** One session, written before it is played. */
export interface Script {
  /** Its number in the run, from 0: with the seed it names the session, whatever the rate. */
  index: number;
  className: ClassName;
  /** Number of its tenant. */
  tenant: number;
  /** After the start of the run. */
  arrivalMs: number;
  turns: ScriptTurn[];
}

/** Text between competing facts: house-0 was trained with 128, and answers well with more. */
const charsPerFact = 512;
const tailAlpha = 1.2;
/** Nobody thinks longer than this many means, so that a run ends. */
const thinkMeansMax = 5;
const burstShare = 0.25;
/** Mean and bounds of what aborting and slow clients do. */
const abortMeanMs = 400;
const readMs = { min: 50, max: 500 } as const;
/** Streams of a session's random numbers that are drawn apart, so that flags for them change no word of it. */
const mannersStream = 0x4000_0000;

/** Times of a Poisson process in [0, durationS), ascending, in milliseconds. */
export function* poissonArrivalsMs(random: Random, rate: { perS: number; durationS: number }): Generator<number> {
  for (let atMs = 0; ; ) {
    atMs += drawExponential(random, 1000 / rate.perS);
    if (atMs >= rate.durationS * 1000) return;
    yield atMs;
  }
}

/** The sessions in the order of their arrival; each is drawn by itself, so it does not depend on the ones before. */
export function* drawScripts(settings: WorkloadSettings): Generator<Script> {
  const arrivals = poissonArrivalsMs(seededRandom(settings.seed), {
    perS: settings.ratePerS,
    durationS: settings.durationS,
  });
  let index = 0;
  for (const atMs of arrivals) {
    yield drawScript(settings, index, burstMs(atMs, settings.burstPeriodS));
    index += 1;
  }
}

/** Sessions without end, for users who begin the next when one is over. */
export function* drawEndlessly(settings: WorkloadSettings): Generator<Script> {
  for (let index = 0; ; index++) yield drawScript(settings, index, 0);
}

/** Session number `index`. */
export function drawScript(settings: WorkloadSettings, index: number, arrivalMs: number): Script {
  const manners = seededRandom(settings.seed, mannersStream + index);
  const tenant = drawWeighted(manners, settings.tenants ?? [1]);
  const { className, turns } = drawSession(seededRandom(settings.seed, index + 1), settings);
  return { index, arrivalMs, className, tenant, turns: turns.map((turn) => withManners(manners, turn, settings)) };
}

function withManners(
  random: Random,
  turn: ScriptTurn,
  { abortShare = 0, slowShare = 0 }: WorkloadSettings,
): ScriptTurn {
  const [aborts, reads, abortMs, slowness] = [random(), random(), drawExponential(random, abortMeanMs), random()];
  return {
    ...turn,
    ...(aborts < abortShare && { abortAfterMs: abortMs }),
    ...(reads < slowShare && { readMs: readMs.min + slowness * (readMs.max - readMs.min) }),
  };
}

/** Pushes what arrives in a period into its first quarter. */
function burstMs(atMs: number, periodS: number | undefined): number {
  if (periodS === undefined) return atMs;
  const periodMs = periodS * 1000;
  const startMs = Math.floor(atMs / periodMs) * periodMs;
  return startMs + (atMs - startMs) * burstShare;
}

/** One to `turnsMax` turns; the first brings the passage, some later ones bring a little more. */
export function drawSession(random: Random, settings: WorkloadSettings): Pick<Script, "className" | "turns"> {
  const className = classNames[drawWeighted(random, settings.mix)] ?? "short";
  const charCount = drawLength(random, className, settings.promptCharsMax);
  const turnCount = 1 + Math.floor(random() * settings.turnsMax);
  const taken = new Set<string>();
  const drawFacts = (count: number): Fact[] => Array.from({ length: count }, () => drawFact(random, taken));
  const facts = drawFacts(Math.max(2, Math.floor(charCount / charsPerFact)));
  const first = drawOne(random, facts);
  const turns = [{ text: drawPassage(random, charCount, facts) + questionAbout(first), fact: first, thinkMs: 0 }];
  while (turns.length < turnCount) {
    const fact = drawOne(random, facts);
    const thinkMs = drawThinkMs(random, settings.thinkMeanS);
    const more = random() < 0.25 ? drawFacts(1) : [];
    const passage = more.length === 0 ? "" : drawPassage(random, drawLength(random, "short", Number.MAX_VALUE), more);
    facts.push(...more);
    turns.push({ text: passage + questionAbout(fact), fact, thinkMs });
  }
  return { className, turns };
}

function drawLength(random: Random, className: ClassName, promptCharsMax: number): number {
  const [min, max] = className === "long" ? [classBounds.longMin, promptCharsMax] : classBounds[className];
  return Math.floor(drawPareto(random, { min, max, alpha: tailAlpha }));
}

function drawThinkMs(random: Random, meanS: number): number {
  return Math.min(drawExponential(random, meanS), thinkMeansMax * meanS) * 1000;
}
