/** What a user sees of a store command that takes long. */

/** Between two lines. */
const intervalMs = 5_000;

/** Writes how far a command is, on a line of its own every five seconds. `nowMs` is any clock that only goes forward. */
export function progressReport(write: (line: string) => void, nowMs: () => number): (soFar: () => string) => void {
  let saidMs = nowMs();
  return (soFar) => {
    if (nowMs() - saidMs < intervalMs) return;
    saidMs = nowMs();
    write(`quire: ${soFar()} so far\n`);
  };
}
