/** What the demonstration shows to people, and what it concludes. */
import { styleText } from "node:util";
import { demoPassage, demoQuestions } from "./demo-passage.ts";
import type { Audience, Ending, ResumeOutcome, Turn } from "./resume-scenario.ts";
import { demoBudgetTokens, tokensOf } from "./resume-scenario.ts";

/** Something that was to be shown, and whether it was. */
export interface Claim {
  text: string;
  holds: boolean;
}

/** The screen: one method a paragraph. */
export class DemoReport implements Audience {
  readonly #write: (text: string) => void;
  readonly #columns: number;

  /**
   * @param write gets whole lines with their ends; styles are left out where the environment or the stream has none
   * @param columns of the screen; undefined where it is none
   */
  constructor(write: (text: string) => void, columns: number | undefined) {
    this.#write = write;
    this.#columns = columns ?? Number.POSITIVE_INFINITY;
  }

  title(): void {
    this.#line("");
    this.#line(styleText("bold", "Quire: an engine is killed, and the conversation goes on"));
    this.#line(
      `A passage of ${count(demoPassage.length)} tokens with ${facts()} facts in it; house-0, int8 KV; three questions.`,
    );
  }

  policy(name: string): void {
    const words = name === "dense" ? "every step attends to all pages" : `a step attends to ${demoBudgetTokens} tokens`;
    this.#line("");
    this.#line(styleText(["bold", "cyan"], `${name}: ${words}`));
  }

  step(text: string): void {
    const isKill = text.startsWith("kill");
    this.#line("");
    this.#line(`  ${isKill ? styleText(["bold", "red"], text) : styleText("bold", text)}`);
  }

  turn(_session: string, index: number, turn: Turn): void {
    const { promptTokens, cachedTokens, quire } = turn.usage;
    const fetched = quire.bytesFetched ?? 0;
    const source = fetched > 0 ? `, ${kilobytes(fetched)} from the store` : "";
    const recomputed = (quire.recomputedTokens ?? 0) > 0 ? `, ${count(quire.recomputedTokens ?? 0)} recomputed` : "";
    const cost = `${seconds(turn.latencyMs)}  cached ${count(cachedTokens)} of ${count(promptTokens)}${recomputed}${source}`;
    const question = (demoQuestions[index]?.question ?? "").padEnd(28);
    const fits = `    ${question} ${turn.text}  ${cost}`.length <= this.#columns;
    this.#line(`    ${question} ${styleText("green", turn.text)}${fits ? `  ${styleText("dim", cost)}` : ""}`);
    if (!fits) this.#line(`      ${styleText("dim", cost)}`);
  }

  persisted(sessions: readonly { segmentCount: number; tokenCount: number }[], storedBytes: number): void {
    const [first] = sessions;
    const segments = `${first?.segmentCount} segments and a tail each, ${count(first?.tokenCount ?? 0)} tokens`;
    this.#line(styleText("dim", `    stored: ${segments}; in all ${kilobytes(storedBytes)}`));
  }

  /** The third answers side by side, and the claims. */
  conclusion(outcome: ResumeOutcome, claims: readonly Claim[]): void {
    const calm = outcome.undisturbed.at(-1) as Turn;
    const head = ["third answer", "text", "cached", "recomputed", "from the store", "pages", "attended to"];
    const rows = [row("never killed", calm), ...outcome.endings.map(({ name, turn }) => row(labels[name], turn))];
    // The words stand above already, and a claim below says whether they are the same.
    const whole = table([head, ...rows]);
    const isWide = (whole[0] ?? "").length + 2 > this.#columns;
    const shown = isWide
      ? table(
          [head, ...rows].map((cells) => cells.toSpliced(1, 1)),
          1,
        )
      : whole;
    this.#line("");
    for (const [index, line] of shown.entries()) {
      this.#line(`  ${index === 0 ? styleText("dim", line) : line}`);
    }
    this.#line("");
    for (const { text, holds } of claims) {
      this.#line(`  ${holds ? styleText("green", "yes") : styleText(["bold", "red"], "NO ")}  ${text}`);
    }
  }

  /** What edge and engines warned of, for one who wants to know why. */
  warnings(lines: readonly string[]): void {
    this.#line("");
    for (const line of lines) this.#line(styleText("dim", line));
  }

  verdict(holds: boolean, elapsedMs: number): void {
    const text = holds
      ? "Every answer is right and identical, and pages came from the store."
      : "Something did not hold.";
    this.#line("");
    this.#line(`${styleText(["bold", holds ? "green" : "red"], text)}  ${styleText("dim", seconds(elapsedMs))}`);
  }

  #line(text: string): void {
    this.#write(`${text}\n`);
  }
}

/** What has to hold of a run for the demonstration to end well. */
export function claimsOf(outcome: ResumeOutcome): Claim[] {
  const { undisturbed, before, endings, policy } = outcome;
  const answers = demoQuestions.map(({ answer }) => answer);
  const calm = undisturbed.at(-1);
  const reused = ({ turn }: Ending) => turn.usage.cachedTokens + (turn.usage.quire.recomputedTokens ?? 0);
  const earlier = (index: number) => tokensOf(before[index]?.at(-1));
  const whole = endings.filter(({ name }) => name === "restarted" || name === "second-engine");
  const damaged = endings.filter((ending) => !whole.includes(ending));
  const recomputed = ({ turn }: Ending) => turn.usage.quire.recomputedTokens ?? 0;
  const claims = [
    {
      text: "every answer is right",
      holds:
        undisturbed.every(({ text }, index) => text === answers[index]) &&
        before.every((turns) => turns.every(({ text }, index) => text === answers[index])),
    },
    {
      text: "the third answer is the same text with and without a kill",
      holds: endings.length === 4 && endings.every(({ turn }) => turn.text === calm?.text),
    },
    {
      text: "pages came from the store",
      holds: endings.every(
        ({ turn: { usage } }) =>
          (usage.quire.bytesFetched ?? 0) > 0 && (usage.quire.source?.store ?? 0) === usage.cachedTokens,
      ),
    },
    {
      text: "after a kill alone, everything before the third question was reused",
      holds: whole.every((ending) => recomputed(ending) === 0 && reused(ending) === earlier(endings.indexOf(ending))),
    },
    {
      text: "after damage, what was lost was computed again, and only that",
      holds: damaged.every((ending) => recomputed(ending) > 0 && reused(ending) === earlier(endings.indexOf(ending))),
    },
  ];
  if (policy === "dense") return claims;
  const attended = endings.every(({ turn: { usage } }) => {
    const { pagesSelected = 0, pagesInContext = 0 } = usage.quire;
    return pagesSelected > 0 && pagesSelected * 8 <= pagesInContext && usage.promptTokens >= 8 * demoBudgetTokens;
  });
  return [...claims, { text: "selection was active: at most an eighth of the pages was attended to", holds: attended }];
}

const labels: Record<Ending["name"], string> = {
  restarted: "engine started again",
  "second-engine": "second engine",
  "segment-deleted": "a segment deleted",
  "byte-flipped": "a bit flipped",
};

function row(label: string, { text, usage }: Turn): string[] {
  const {
    pagesSelected = 0,
    pagesInContext = 0,
    recomputedTokens = 0,
    bytesFetched = 0,
    pagesFetched = 0,
  } = usage.quire;
  const share = pagesInContext === 0 ? "all" : `${((100 * pagesSelected) / pagesInContext).toFixed(1)} %`;
  return [
    label,
    text,
    count(usage.cachedTokens),
    count(recomputedTokens),
    kilobytes(bytesFetched),
    count(pagesFetched),
    share,
  ];
}

/** Columns as wide as they need to be; numbers, behind the first ones, stand right. */
function table(rows: readonly string[][], textColumns = 2): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((cells) => cells[column]?.length ?? 0)));
  return rows.map((cells) =>
    cells
      .map((cell, column) =>
        column < textColumns ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
      )
      .join("  "),
  );
}

function facts(): number {
  return demoPassage.match(/The code of \w+ is \d{4}\./g)?.length ?? 0;
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

function kilobytes(bytes: number): string {
  return bytes === 0 ? "0" : `${count(Math.round(bytes / 1024))} KiB`;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}
