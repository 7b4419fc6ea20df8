/** Keeps out of the terminal what workerd says of connections and objects that tests break on purpose. */

/** What is broken on purpose; whatever else is said is shown. */
const KNOWN = [
  "jsg.Error: Network connection lost.",
  "jsg.Error: ReadableStream received over RPC disconnected prematurely.",
  "broken.outputGateBroken; jsg.Error: lost",
  "abortRead() has been called",
  "read end of pipe was aborted",
  "HTTP body: error reading a body from connection",
  "client error (SendRequest)",
];
const FIRST_LINE = /^(?:uncaught exception; )?exception = \S+:\d+: (?:disconnected|failed|broken): (.*)$/;
const REJECTION = /^uncaught exception; source = Uncaught \(in promise\); stack = Error: Network connection lost\.$/;
const PLACE_LINE = /^(?:stack: (?:\S*workerd@[0-9a-f]+ ?)+|\s+at .*)$/;

/** A text without the messages that are known, and without the places behind them. */
export function withoutNoise(text: string): string {
  let isBehindNoise = false;
  const kept = text.split("\n").filter((line) => {
    const isKnown = isKnownLine(line);
    isBehindNoise = isKnown || (isBehindNoise && PLACE_LINE.test(line));
    return !isBehindNoise;
  });
  return kept.join("\n");
}

function isKnownLine(line: string): boolean {
  const reason = FIRST_LINE.exec(line)?.[1];
  return REJECTION.test(line) || KNOWN.some((known) => reason?.startsWith(known));
}

/** From now on the stream leaves these messages out. */
export function leaveOutNoise(stream: NodeJS.WriteStream): void {
  const write = stream.write.bind(stream) as (...rest: unknown[]) => boolean;
  stream.write = (...[chunk, ...rest]: unknown[]) => {
    const text = typeof chunk === "string" ? withoutNoise(chunk) : chunk;
    return text === "" && chunk !== "" ? true : write(text, ...rest);
  };
}
