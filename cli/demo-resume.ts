/** `npm run demo:resume`: kills an engine between two turns and shows that the conversation goes on. Exit code 0 only if it does. */
import { claimsOf, DemoReport } from "./demo-report.ts";
import { Stage } from "./demo-stage.ts";
import { playResume } from "./resume-scenario.ts";
import { runDemo } from "./run-demo.ts";

async function play(signal: AbortSignal): Promise<number> {
  const startMs = performance.now();
  const report = new DemoReport((text) => void process.stdout.write(text), process.stdout.columns);
  report.title();
  const stage = await Stage.open(signal);
  // A turn that runs ends with the stage.
  signal.addEventListener("abort", () => void stage.close());
  try {
    const holds = await show(stage, report);
    if (!holds) report.warnings(stage.warnings);
    report.verdict(holds, performance.now() - startMs);
    return holds ? 0 : 1;
  } catch (error) {
    if (!signal.aborted) report.warnings(stage.warnings);
    throw error;
  } finally {
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

await runDemo("demo:resume", play);
