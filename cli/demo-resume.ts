/** `npm run demo:resume`: kills an engine between two turns and shows that the conversation goes on. Exit code 0 only if it does. */
import { claimsOf, DemoReport } from "./demo-report.ts";
import { Stage } from "./demo-stage.ts";
import { playResume } from "./resume-scenario.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

async function main(): Promise<number> {
  const startMs = performance.now();
  const life = new AbortController();
  const stop = listenForStop(process, () => performance.now());
  const report = new DemoReport((text) => void process.stdout.write(text));
  report.title();
  const stage = await Stage.open(life.signal);
  try {
    const shown = show(stage, report);
    // When the user stops it, killing the stage ends this too, and nobody waits for what it says then.
    shown.catch(() => undefined);
    const holds = await Promise.race([shown, stop.requested]);
    if (typeof holds === "string") return 1;
    if (!holds) report.warnings(stage.warnings);
    report.verdict(holds, performance.now() - startMs);
    return holds ? 0 : 1;
  } catch (error) {
    report.warnings(stage.warnings);
    throw error;
  } finally {
    life.abort();
    await stage.close();
  }
}

async function show(stage: Stage, report: DemoReport): Promise<boolean> {
  let holds = true;
  for (const policy of ["quest", "dense"] as const) {
    report.policy(policy);
    const outcome = await playResume(stage, policy, report);
    const claims = claimsOf(outcome);
    report.conclusion(outcome, claims);
    holds &&= claims.every((claim) => claim.holds);
  }
  return holds;
}

try {
  process.exit(await main());
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`demo:resume: ${error.message}\n`);
  process.exit(1);
}
