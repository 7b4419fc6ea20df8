/** The frame of the `npm run demo:*` commands: Ctrl-C ends a play in order, and a user's mistake is one line. */
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

/** Plays a demonstration and ends the process: with the exit code that `play` resolves to, with 1 after a stop or a {@link UsageError}. */
export async function runDemo(name: string, play: (signal: AbortSignal) => Promise<number>): Promise<never> {
  try {
    process.exit(await untilStopped(play));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`${name}: ${error.message}\n`);
    process.exit(1);
  }
}

async function untilStopped(play: (signal: AbortSignal) => Promise<number>): Promise<number> {
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
