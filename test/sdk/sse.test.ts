import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SseEvent, SseParser } from "../../sdk/sse.ts";

const message = (data: string, id = ""): SseEvent => ({ event: "message", data, id });

/** The examples and rules of the WHATWG HTML standard, section "Server-sent events", with what they mean. */
const CASES: [name: string, stream: string, events: SseEvent[]][] = [
  ["multi-line data", "data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]],
  [
    "comments, ids, an id reset",
    ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
    [message("first event", "1"), message("second event"), message(" third event")],
  ],
  ["empty data, twice; the last is not dispatched", "data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]],
  ["one leading space only", "data:test\n\ndata: test\n\n", [message("test"), message("test")]],
  ["CR LF", "data: a\r\ndata: b\r\n\r\n", [message("a\nb")]],
  ["CR", "data: a\rdata: b\r\r", [message("a\nb")]],
  ["mixed line ends", "data: a\rdata: b\ndata: c\r\n\n", [message("a\nb\nc")]],
  ["a byte order mark at the start", "\ufeffdata: a\n\n", [message("a")]],
  ["a byte order mark elsewhere is part of the field's name", "data: a\n\n\ufeffdata: b\n\n", [message("a")]],
  ["named events", "event: x\ndata: a\n\ndata: b\n\n", [{ event: "x", data: "a", id: "" }, message("b")]],
  ["an event without data is nothing", "event: x\nid: 7\n\ndata: a\n\n", [message("a", "7")]],
  ["unknown fields, an id with NUL", "retry: 10\nnope: 1\nid: a\u0000b\ndata: a\n\n", [message("a")]],
  ["heartbeats", ": hb\n\n: hb\n\ndata: [DONE]\n\n", [message("[DONE]")]],
  ["a colon in the data", 'data: {"a": "b:c"}\n\n', [message('{"a": "b:c"}')]],
];

describe("SSE", () => {
  for (const [name, stream, events] of CASES) {
    it(`${name}: over every way to cut it in three`, () => {
      expect(new SseParser().push(stream)).toEqual(events);
      for (let first = 0; first <= stream.length; first++) {
        for (let second = first; second <= stream.length; second++) {
          const parser = new SseParser();
          const parts = [stream.slice(0, first), stream.slice(first, second), stream.slice(second)];
          expect(parts.flatMap((part) => parser.push(part))).toEqual(events);
        }
      }
    });
  }

  it("reads back what was written, whatever the data, line ends and cuts are", () => {
    const line = fc.string({ unit: fc.constantFrom(...'ab: \u00e9😀\ufeff{}"') });
    const event = fc.record({
      data: fc.array(line, { minLength: 1, maxLength: 4 }).map((lines) => lines.join("\n")),
      comment: fc.boolean(),
    });
    const cuts = fc.array(fc.nat({ max: 5 }));
    fc.assert(
      fc.property(fc.array(event), fc.constantFrom("\n", "\r\n", "\r"), cuts, (events, end, sizes) => {
        const stream = events
          .map(({ data, comment }) => {
            const lines = data.split("\n").map((part) => `data: ${part}${end}`);
            return (comment ? `: hb${end}${end}` : "") + lines.join("") + end;
          })
          .join("");
        const parser = new SseParser();
        const got: SseEvent[] = [];
        let at = 0;
        for (const size of [...sizes, stream.length]) {
          got.push(...parser.push(stream.slice(at, at + size)));
          at += size;
        }
        expect(got.map(({ data }) => data)).toEqual(events.map(({ data }) => data));
      }),
      { seed: 13, numRuns: 2_000 },
    );
  });

  it("holds no more than its limit", () => {
    expect(() => new SseParser(100).push(`data: ${"x".repeat(200)}`)).toThrow(RangeError);
    const lines = new SseParser(100);
    expect(() => {
      for (let count = 0; count < 200; count++) lines.push("data: x\n");
    }).toThrow(RangeError);
    const short = new SseParser(100);
    for (let count = 0; count < 1_000; count++) expect(short.push("data: xyz\n\n").length).toBe(1);
  });

  /** Linear work takes milliseconds; a parser that reads from the line's beginning for each chunk takes minutes. */
  it("takes linear time on a long line in small chunks", { timeout: 120_000 }, () => {
    const parser = new SseParser();
    const began = performance.now();
    for (let count = 0; count < 500_000; count++) parser.push("data: xyz ");
    expect(parser.push("\n\n").length).toBe(1);
    expect(performance.now() - began).toBeLessThan(20_000);
  });
});
