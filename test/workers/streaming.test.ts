import { describe, expect, it } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import type { Step } from "./fake-engine/script.ts";
import { MERGED, mergedTokenizerJson } from "./merged-words.ts";
import { END, eventsOf, ids, makeWorld, parseEvents, says, type World } from "./world.ts";

/** Contents of the deltas of choice 0. */
function deltasOf(events: unknown[]): string[] {
  return events.flatMap((event) => {
    const [choice] = (event as { choices?: { delta?: { content?: string; role?: string } }[] }).choices ?? [];
    return choice?.delta?.content !== undefined && choice.delta.role === undefined ? [choice.delta.content] : [];
  });
}

/** One frame per id, so that every border between tokens is a border between events. */
function oneByOne(all: number[]): Step[] {
  return all.flatMap((id): Step[] => [
    { do: "tokens", ids: [id] },
    { do: "wait", ms: 2 },
  ]);
}

async function stream(world: World, steps: Step[], more: object = {}): Promise<unknown[]> {
  await world.engine.script({ do: "admit" }, ...steps);
  return eventsOf(await world.chat(`hi ${crypto.randomUUID()}`, { stream: true, ...more }));
}

describe("the stream", () => {
  it("never shows half a character", async () => {
    const world = await makeWorld();
    const text = "é€🙂漢é";
    const events = await stream(world, [...oneByOne(ids(text)), ...says("").slice(1)]);
    const deltas = deltasOf(events);
    expect(deltas).toEqual(["é", "€", "🙂", "漢", "é"]);
  });

  it("shows a replacement character only where bytes really are broken", async () => {
    const world = await makeWorld();
    const broken = [0xf0, 0x9f, 97, 0x80, ...ids("é")];
    const events = await stream(world, [...oneByOne([...broken, 0xc3]), { do: "done", reason: "length" }]);
    expect(deltasOf(events).join("")).toBe(new TextDecoder().decode(Uint8Array.from([...broken, 0xc3])));
  });

  it("finds stop strings across token borders and shows nothing of them", async () => {
    const world = await makeWorld();
    const cases: { text: string; stop: string | string[]; shown: string }[] = [
      { text: "abSTOPcd", stop: "STOP", shown: "ab" },
      { text: "STOP", stop: ["STOP"], shown: "" },
      { text: "SSTOP", stop: ["STOP"], shown: "S" },
      { text: "STSTSTOPx", stop: ["STSTOP"], shown: "ST" },
      { text: "one\n\ntwo", stop: ["\n\n", "never"], shown: "one" },
      { text: "aXbYc", stop: ["Y", "X"], shown: "a" },
      { text: "price: 5€!", stop: ["€"], shown: "price: 5" },
      { text: "a😀bXc", stop: ["\ude00", "X"], shown: "a😀b" },
    ];
    for (const { text, stop, shown } of cases) {
      const events = await stream(world, [...oneByOne(ids(text)), { do: "hang" }], { stop });
      expect(deltasOf(events).join(""), text).toBe(shown);
      expect(events.at(-2), text).toMatchObject({ choices: [{ finish_reason: "stop" }] });
    }
  });

  it("finds a stop string that begins and ends within tokens", async () => {
    const world = await makeWorld({ tokenizerJson: mergedTokenizerJson() });
    const steps: Step[] = [...oneByOne([97, MERGED["\nS"], MERGED.TO, MERGED["P!"], 98]), { do: "hang" }];
    expect(deltasOf(await stream(world, steps, { stop: "STOP" })).join("")).toBe("a\n");
  });

  it("holds back only what could still become a stop string", async () => {
    const world = await makeWorld();
    const steps: Step[] = [
      { do: "tokens", ids: ids("a ST") },
      { do: "wait", ms: 50 },
      { do: "tokens", ids: ids("ILL") },
      { do: "wait", ms: 50 },
      { do: "tokens", ids: [...ids(" STO"), END] },
      { do: "done", reason: "stop" },
    ];
    expect(deltasOf(await stream(world, steps, { stop: "STOP" }))).toEqual(["a ", "STILL", " STO"]);
  });

  it("gives logprobs with the text they belong to, and none of what a stop string cut", async () => {
    const world = await makeWorld();
    const tokens = ids("ab SToP STOPx");
    const logprobs = tokens.map((_, index) => ({ logprob: -index, top: [] }));
    const steps: Step[] = [
      ...tokens.flatMap((id, index): Step[] => [
        { do: "tokens", ids: [id], logprobs: [logprobs[index] ?? { logprob: 0, top: [] }] },
        { do: "wait", ms: 2 },
      ]),
      { do: "hang" },
    ];
    const events = await stream(world, steps, { stop: "STOP", logprobs: true });
    const entries = events.flatMap((event) => {
      const [choice] = (event as { choices?: { logprobs?: { content: { token: string }[] } | null }[] }).choices ?? [];
      return choice?.logprobs?.content ?? [];
    });
    expect(entries.map(({ token }) => token).join("")).toBe("ab SToP ");
    expect(deltasOf(events).join("")).toBe("ab SToP ");
  });

  it("beats while the engine is silent, before and between tokens, and no more often than it should", async () => {
    const world = await makeWorld();
    await world.engine.script(
      { do: "admit" },
      { do: "hold" },
      { do: "tokens", ids: ids("a") },
      { do: "hold" },
      ...says("b").slice(1),
    );
    const startMs = Date.now();
    const response = await world.chat("hi", { stream: true });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    const decoder = new TextDecoder();
    let text = "";
    const more = async (): Promise<boolean> => {
      const { done, value } = await reader.read();
      if (!done) text += decoder.decode(value, { stream: true });
      return !done;
    };
    const beatCount = (): number => text.split("\n\n").filter((event) => event.startsWith(":")).length;
    while (beatCount() < 3) await more();
    expect(text).not.toContain('"content":"a"');
    await world.engine.release();
    while (!text.includes('"content":"a"')) await more();
    for (const before = beatCount(); beatCount() < before + 2; ) await more();
    expect(text).not.toContain('"content":"b"');
    await world.engine.release();
    while (await more());
    expect(beatCount()).toBeLessThanOrEqual(1 + (Date.now() - startMs) / LIMITS.heartbeatMs);
    const shape = parseEvents(text).map((event) =>
      event === ":" || event === "[DONE]" ? event : deltasOf([event]).join("") || "chunk",
    );
    expect(shape.filter((item) => item !== ":")).toEqual(["chunk", "a", "b", "chunk", "[DONE]"]);
  });

  it("sends headers and the role at once, before the first token", async () => {
    const world = await makeWorld();
    await world.engine.script({ do: "admit" }, { do: "hold" }, ...says("late").slice(1));
    const response = await world.chat("hi", { stream: true });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    const { value } = await reader.read();
    expect(new TextDecoder().decode(value)).toContain('"role":"assistant"');
    await world.engine.release();
    const rest: string[] = [];
    for (let part = await reader.read(); !part.done; part = await reader.read())
      rest.push(new TextDecoder().decode(part.value));
    expect(rest.join("")).toContain('"content":"late"');
  });

  it("is patient with a slow answer without a stream: spaces first, then the object", async () => {
    const world = await makeWorld();
    await world.engine.script({ do: "admit" }, { do: "wait", ms: 900 }, ...says("late").slice(1));
    const response = await world.chat("hi");
    expect(response.status).toBe(200);
    // Compressed, the spaces would wait for the rest.
    expect(response.headers.get("content-encoding")).toBe("identity");
    const text = await response.text();
    expect(text).toMatch(/^ {1,6}\{/);
    expect(JSON.parse(text)).toMatchObject({ choices: [{ message: { content: "late" } }] });
  });
});
