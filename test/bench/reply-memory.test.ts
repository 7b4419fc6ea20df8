/** What a reply keeps in the edge's memory while it grows: seen in Node, where garbage can be collected. */
import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";

/** What is asked of it here: its own types are those of the Worker's project. */
interface GrowingReply {
  push(ids: number[], logprobs: { logprob: number; top: [number, number][] }[]): { logprobs: object[] };
  finish(): { logprobs: { token: string; top: object[] }[] };
}

const replyModule = new URL("../../workers/session-log/reply.ts", import.meta.url).href;
const read = (name: string): unknown => JSON.parse(readFileSync(`weights/house-0/${name}`, "utf8"));

describe("a reply with logprobs", () => {
  it("keeps none that was let out: twenty alternatives a token are more than all the rest of a turn", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const { tokenizer } = openTokenizer({
      tokenizerJson: read("tokenizer.json"),
      tokenizerConfig: read("tokenizer_config.json"),
    });
    const { Reply } = await import(replyModule);
    const reply: GrowingReply = new Reply({ tokenizer, stopTokens: [], stopStrings: ["xyz"] });
    const top = Array.from({ length: 20 }, (_, index): [number, number] => [97 + index, -index]);
    const say = (letter: string) => {
      const { logprobs } = reply.push([letter.charCodeAt(0)], [{ logprob: -0.5, top }]);
      return logprobs.map((logprob) => new WeakRef(logprob));
    };
    const letOut = Array.from("abcdefgh".repeat(50)).flatMap(say);
    // The last two may be the beginning of the stop string: they wait.
    expect([...say("x"), ...say("y")]).toEqual([]);
    expect(letOut).toHaveLength(400);
    await new Promise((resolve) => setTimeout(resolve, 0));
    collect();
    expect(letOut.filter((reference) => reference.deref() !== undefined)).toEqual([]);
    const rest = reply.finish().logprobs;
    expect(rest.map(({ token, top: alternatives }) => [token, alternatives.length])).toEqual([
      ["x", 20],
      ["y", 20],
    ]);
  });
});
