/** Random lives of the whole stack through its API, held against an independent twin; and that what judges them would find something. */
import { describe, expect, it } from "vitest";
import { Client, type Outcome } from "./lives/client.ts";
import { type AskedTurn, Conversation, Violation } from "./lives/conversation.ts";
import { live } from "./lives/life.ts";
import { newReport } from "./lives/report.ts";
import { promptOf } from "./lives/transcript.ts";
import { DENSE, type Expected } from "./lives/twin.ts";

const isFull = process.env.QUIRE_TEST_FULL === "1";
/** In the short one an engine, the edge and a store are disturbed in its first three seconds, three turns run at once, and nothing stands still. */
const SEEDS = isFull ? Array.from({ length: 20 }, (_, index) => index + 1) : [9_396];
const ACT_COUNT = isFull ? 16 : 5;

describe("lives of the whole stack", () => {
  it.each(SEEDS)("seed %i says what the twin says, and leaves nothing", { timeout: 240_000 }, async (seed) => {
    const report = await live({ seed, actCount: ACT_COUNT, signal: new AbortController().signal });
    expect(report.compared).toBeGreaterThan(3 * ACT_COUNT);
    expect(report.cachedTokens).toBeGreaterThan(0);
    expect(report.enginesKilled + report.enginesDrained + report.edgesKilled + report.storesDisturbed).toBeGreaterThan(
      0,
    );
  });
});

describe("what judges a life", () => {
  const reply: Expected = {
    ...{ ids: [...new TextEncoder().encode("Yes.")], isEnded: true, text: "Yes.", reason: "stop", completionTokens: 5 },
    ...{ logprobs: [-1, -2, -3, -4, -5], how: { prompt: "dense", reply: "dense" } },
  };
  const sent = [{ role: "user" as const, content: "Is it?" }];
  const turn: AskedTurn = { sent, isWhole: false, manner: DENSE, exact: true, hasLogprobs: true, isStream: true };
  const open = (states = {}) => {
    const client = new Client(() => "http://127.0.0.1:1", "none");
    const twins = { replies: async () => [reply], isMixed: false };
    return new Conversation("judged", { sessionId: "judged", client, twins, report: newReport(), ...states });
  };
  const done = (changes: object = {}, usage: object = {}, quire: object = {}): Outcome => ({
    ...{ kind: "done", id: "c", sessionId: "judged" },
    choices: [{ text: "Yes.", reason: "stop", logprobs: reply.logprobs, ...changes }],
    usage: {
      ...{ prompt_tokens: 9, completion_tokens: 5, total_tokens: 14, prompt_tokens_details: { cached_tokens: 3 } },
      quire: { session_id: "judged", engines: ["e"], source: { device: 3, host: 0, store: 0 }, ...quire },
      ...usage,
    },
  });
  const takes = (outcome: Outcome, isEdgeLost = false) => {
    const conversation = open();
    return conversation.take([{ turn, outcome, isEdgeLost }]).then(() => conversation);
  };

  it("knows the log behind a turn that was heard", async () => {
    const { known } = await takes(done());
    expect(known).toMatchObject({ turnCount: 1, isApproximate: false });
    expect(known?.ids).toEqual([256, 257, ...new TextEncoder().encode("Is it?"), 258, ...reply.ids, 259]);
    const next = promptOf(known as NonNullable<typeof known>, [{ role: "user", content: "?" }], false);
    expect([next.turnStart, next.ids.length]).toEqual([14, 17]);
  });

  it.each([
    ["another text", done({ text: "No." })],
    ["another reason", done({ reason: "length" })],
    ["a log probability", done({ logprobs: [-1, -2, -3.1] })],
    ["a prompt of another length", done({}, { prompt_tokens: 10, total_tokens: 15 })],
    ["a token too many", done({}, { completion_tokens: 6, total_tokens: 15 })],
    ["a sum", done({}, { total_tokens: 15 })],
    ["sources", done({}, {}, { source: { device: 3, host: 1, store: 0 } })],
    ["words that were never said", { kind: "left", text: "Yet", isStream: true }],
  ] as const)("finds %s", async (_, outcome) => {
    await expect(takes(outcome)).rejects.toThrow(Violation);
  });

  it("keeps in mind what may be in the log of a client that left", async () => {
    const counts = ({ states }: Conversation) => states.map(({ ids }) => ids.length).sort((a, b) => a - b);
    expect(counts(await takes({ kind: "left", text: "Ye", isStream: true }))).toEqual([11, 12, 13, 14]);
    expect(counts(await takes({ kind: "left", text: "", isStream: true }))).toEqual([0, 10, 11, 12, 13, 14]);
    expect(counts(await takes({ kind: "lost", text: "Ye", why: "" }, true))).toEqual([0, 11, 12, 13, 14]);
    expect((await takes({ kind: "refused", status: 409, code: "session_busy" })).states).toHaveLength(1);
  });

  it("knows a reply that a stop string cut at its beginning, one whose engine was not heard, and engines of two kinds", async () => {
    const judge = async (outcome: Outcome, ...replies: Expected[]) => {
      const conversation = open({ twins: { replies: async () => replies, isMixed: replies.length > 1 } });
      await conversation.take([{ turn, outcome, isEdgeLost: false }]);
      return conversation.states.map(({ ids }) => ids.length);
    };
    const cut = { ...reply, ids: [], isEnded: false, text: "" };
    expect(await judge({ kind: "left", text: "", isStream: true }, cut)).toEqual([0, 9]);
    const selected = { ...reply, how: { prompt: "dense", reply: "quest.1:128@1" } };
    expect(await judge(done(), selected)).toEqual([14, 14]);
    expect(await judge(done({}, {}, { policy: "quest" }), selected)).toEqual([14]);
    const other = { ...reply, text: "No.", logprobs: [-1, -2, -3, -4, -6] };
    expect(await judge(done(), other, reply)).toEqual([14]);
    await expect(judge(done({ text: "Yes" }), other, reply)).rejects.toThrow(Violation);
    await expect(judge(done({ text: "No." }), other, reply)).rejects.toThrow("log probability 4");
  });

  it("takes two answers in either order, and not twice the same", async () => {
    const both = [done(), done({}, { prompt_tokens: 22, total_tokens: 27 })];
    for (const answers of [both, [...both].reverse()]) {
      const conversation = open();
      await conversation.take(answers.map((outcome) => ({ turn, outcome, isEdgeLost: false })));
      expect(conversation.known?.turnCount).toBe(2);
    }
    const twice = [done(), done()].map((outcome) => ({ turn, outcome, isEdgeLost: false }));
    await expect(open().take(twice)).rejects.toThrow(Violation);
  });
});
