/** `npm run sim -- --stack`: lives of the whole stack, one after the other; a failing one says how to see it again. */
import { Violation } from "./conversation.ts";
import { live } from "./life.ts";
import { addReport, type LifeReport, newReport } from "./report.ts";

/** Of each client in a life. */
const ACT_COUNT = 16;

/** Which lives. */
export interface LivesCommand {
  seeds: number;
  first: number;
  /** Lives that may fail before the run ends. */
  failures: number;
}

/** Lives them, and tells what they saw. @returns the exit code */
export async function runLives({ seeds, first, failures: failuresMax }: LivesCommand): Promise<number> {
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  const sum = newReport();
  let failures = 0;
  let lives = 0;
  for (let seed = first; seed < first + seeds && failures < failuresMax && !stop.signal.aborted; seed++) {
    const startMs = performance.now();
    lives += 1;
    try {
      const report = await live({ seed, actCount: ACT_COUNT, signal: stop.signal, tell: (line) => console.log(line) });
      addReport(sum, report);
      const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
      console.log(`seed ${seed}: ${report.turns} requests, ${report.compared} replies compared, ${seconds} s`);
    } catch (error) {
      failures += 1;
      console.error(`seed ${seed}:`, error instanceof Violation ? error.message : error);
    }
  }
  console.log(`${lives} lives from ${first}: ${failures} failed`);
  console.log(countsOf(sum));
  return failures > 0 ? 1 : 0;
}

function countsOf(report: LifeReport): string {
  return Object.entries(report)
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");
}
