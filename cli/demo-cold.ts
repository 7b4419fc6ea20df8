/**
 * `npm run demo:cold [-- FILE]`: an engine with nothing but the bucket answers a question about a document that only another one has read, and shows
 * where the time went, as text and as an SVG (`.data/demo-cold.svg`). Exit code 0 only if the answer is right and came from stored pages.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { styleText } from "node:util";
import { type ColdDemoTurn, type ColdOutcome, playCold } from "./cold-scenario.ts";
import { timelineRows, timelineSvg, timelineText } from "./cold-timeline.ts";
import { Stage } from "./demo-stage.ts";
import { runDemo } from "./run-demo.ts";

/** Passages without a fact around the one with facts: about 6,000 tokens in all. */
const FILLERS = 8;

const line = (text = ""): void => void process.stdout.write(`${text}\n`);

function showTurn({ question, text, usage, latencyMs }: ColdDemoTurn): void {
  const cost = `${usage.cachedTokens} of ${usage.promptTokens} tokens reused, ${(latencyMs / 1000).toFixed(1)} s`;
  line(`  ${question} ${styleText("green", text)}`);
  line(`    ${styleText("dim", cost)}`);
}

/** What has to hold, and whether it does. */
function claimsOf({ second, answer, engines }: ColdOutcome): [text: string, holds: boolean][] {
  const { cachedTokens, promptTokens, recomputedTokens, bytesBeforeFirstToken } = second.usage;
  return [
    ["the answer is right", second.text === answer],
    ["another engine gave it", engines.coldId !== engines.readerId],
    ["nothing of the document was computed again", recomputedTokens === 0 && cachedTokens > promptTokens - 64],
    ["its pages came from the bucket", bytesBeforeFirstToken > 0],
  ];
}

async function show(outcome: ColdOutcome, path: string): Promise<boolean> {
  const { second, persisted, storedBytes, trace } = outcome;
  const rows = timelineRows(trace);
  const share = ((100 * second.usage.bytesBeforeFirstToken) / storedBytes).toFixed(0);
  const stored = `${persisted.tokenCount} tokens, ${(storedBytes / 1e6).toFixed(1)} MB in the bucket;`;
  const read = `${share} % of it was read before the first token, ${second.usage.firstTokenMs.toFixed(0)} ms after the request`;
  line();
  const { columns = Number.POSITIVE_INFINITY } = process.stdout;
  for (const text of timelineText(rows, columns - 2)) line(`  ${text}`);
  line();
  for (const text of [stored, read]) line(`  ${text}`);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, timelineSvg("A cold engine answers from the bucket", `${stored} ${read}`, rows));
  line(`  ${styleText("dim", `written: ${path}`)}`);
  line();
  const claims = claimsOf(outcome);
  for (const [text, holds] of claims)
    line(`  ${holds ? styleText("green", "yes") : styleText(["bold", "red"], "NO ")}  ${text}`);
  return claims.every(([, holds]) => holds);
}

async function play(signal: AbortSignal): Promise<number> {
  line();
  line(styleText("bold", "Quire: an engine that has nothing answers about what another one has read"));
  line("The house model, int8 KV, pages in a local R2 bucket through the S3 API.");
  const stage = await Stage.open(signal, undefined, "house");
  signal.addEventListener("abort", () => void stage.close());
  try {
    const outcome = await playCold(stage, FILLERS, {
      step: (text) => line(`\n  ${styleText("bold", text)}`),
      turn: showTurn,
    });
    const holds = await show(outcome, process.argv[2] ?? ".data/demo-cold.svg");
    if (!holds) for (const warning of stage.warnings) line(styleText("dim", warning));
    return holds ? 0 : 1;
  } finally {
    await stage.close();
  }
}

await runDemo("demo:cold", play);
