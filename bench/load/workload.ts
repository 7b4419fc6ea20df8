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
}

/** One turn: what is sent, and the fact it asks for. */
export interface ScriptTurn {
  text: string;
  fact: Fact;
  /** From the answer before it to this turn; 0 for the first. */
  thinkMs: number;
}

/** One session, written before it is played. */
export interface Script {
  /** Its number in the run, from 0: with the seed it names the session, whatever the rate. */
  index: number;
  className: ClassName;
  /** After the start of the run. */
  arrivalMs: number;
  turns: ScriptTurn[];
}

/** Text between competing facts: house-0 was trained with 128, and answers well with more. */
const charsPerFact = 512;
const tailAlpha = 1.2;
/** Nobody thinks longer than this many means, so that a run ends. */
const thinkMeansMax = 5;

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
  for (const arrivalMs of arrivals) {
    yield { index, arrivalMs, ...drawSession(seededRandom(settings.seed, index + 1), settings) };
    index += 1;
  }
}

/** One to `turnsMax` turns; the first brings the passage, some later ones bring a little more. */
export function drawSession(random: Random, settings: WorkloadSettings): Omit<Script, "index" | "arrivalMs"> {
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
