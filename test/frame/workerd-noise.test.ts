import { describe, expect, it } from "vitest";
import { leaveOutNoise, withoutNoise } from "./workerd-noise.ts";

const stack = "stack: /w/bin/workerd@3dd2b17 /w/bin/workerd@3e22ae2";
const known = [
  "exception = kj/async-io.c++:1697: disconnected: abortRead() has been called",
  "exception = rust/worker/ffi.rs:110: disconnected: HTTP body: error reading a body from connection",
  "uncaught exception; exception = workerd/api/actor-state.c++:1249: failed: broken.outputGateBroken; jsg.Error: lost",
  "uncaught exception; exception = workerd/jsg/value.h:1535: disconnected: jsg.Error: Network connection lost.",
  "uncaught exception; source = Uncaught (in promise); stack = Error: Network connection lost.",
];
const shown = [
  "",
  stack,
  "uncaught exception; exception = workerd/jsg/value.h:1535: failed: jsg.Error: TypeError: x is not a function",
  "uncaught exception; source = Uncaught (in promise); stack = TypeError: x is not a function",
  "AssertionError: expected a connection; Network connection lost.",
  '{"level":"error","message":"Network connection lost."}',
];

describe("what workerd says of broken connections", () => {
  it("is left out where it is known, with the places behind it, and nothing else", () => {
    for (const message of known) {
      for (const places of ["", `\n${stack}`, "\n    at f (worker.js:1:2)"]) {
        expect(withoutNoise(`before\n${message}${places}\nTests 1 failed\n`)).toBe("before\nTests 1 failed\n");
      }
    }
    const all = known.map((message) => `${message}\n${stack}\n`).join("");
    for (const message of shown)
      expect(withoutNoise(`${all}${message}\n${stack}`)).toBe(message === stack ? "" : `${message}\n${stack}`);
  });

  it("does not reach a stream that leaves it out; everything else does", () => {
    const written: unknown[] = [];
    const stream = { write: (chunk: unknown) => written.push(chunk) > 0 } as unknown as NodeJS.WriteStream;
    leaveOutNoise(stream);
    for (const message of [...known, ...shown]) expect(stream.write(message)).toBe(true);
    stream.write(new TextEncoder().encode("bytes"));
    expect(written).toEqual([...shown, new TextEncoder().encode("bytes")]);
  });
});
