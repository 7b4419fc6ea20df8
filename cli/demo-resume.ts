/** `npm run demo:resume`: kills an engine between two turns and shows that the conversation goes on. Exit code 0 only if it does. */
import { claimsOf, DemoReport } from "./demo-report.ts";
import { Stage } from "./demo-stage.ts";
import { playResume } from "./resume-scenario.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

async function main(): Promise<number> {
  const life = new AbortController();
  const stop = listenForStop(process, () => performance.now());
  const stopped = stop.requested.then(() => {
    life.abort();
    return 1;
  });
  const played = play(life.signal);
  // After a stop nobody waits for the reason why it broke off.
  played.catch(() => undefined);
  const code = await Promise.race([stopped, played]);
  await played.catch(() => undefined);
  return code;
}

async function play(signal: AbortSignal): Promise<number> {
  const startMs = performance.now();
  const report = new DemoReport((text) => void process.stdout.write(text));
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

try {
  process.exit(await main());
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`demo:resume: ${error.message}\n`);
  process.exit(1);
}
