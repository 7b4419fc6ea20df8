/** `npm start` as its user sees it: what is printed works, and no end of it loses what was acknowledged or leaves a process. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Secrets } from "../../cli/data-folder.ts";
import { sessionManifest } from "../../cli/demo-stage.ts";
import { bucketName } from "../../cli/edge-process.ts";
import { storeEnvironment } from "../../cli/engine-process.ts";
import { openStore } from "../../storage/open.ts";
import { runQuire } from "../cli/run-quire.ts";
import { killQuietly, type QuireProcess, startQuire, temporaryFolder, until } from "./support/quire-process.ts";
import { answer, ask, longText, passage } from "./support/words.ts";

const model = "house-0";
const opening = `${longText(700)}${passage}${longText(300)}${ask("Badoru")}`;

interface Asked {
  text: string;
  /** Log probabilities of the reply's tokens: equal ones mean equal numbers, not only equal words. */
  logprobs: number[];
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  quire: { session_id: string; source: { store: number }; bytes_fetched: number };
}

type Transcript = { role: "user" | "assistant"; content: string }[];

/** Without a session's id: a plain OpenAI client, which sends the whole transcript each time. */
async function say(quire: QuireProcess, messages: Transcript, sessionId?: string): Promise<Asked> {
  const client = new OpenAI({ baseURL: `${quire.url}/v1`, apiKey: quire.apiKey });
  const selection = { policy: "quest", budget_tokens: 256, exact: true };
  const request = { model, messages, temperature: 0, logprobs: true, quire: { selection, session_id: sessionId } };
  const { choices, usage } = await client.chat.completions.create(request);
  return {
    text: choices[0]?.message.content ?? "",
    logprobs: (choices[0]?.logprobs?.content ?? []).map(({ logprob }) => logprob),
    promptTokens: usage?.prompt_tokens ?? 0,
    completionTokens: usage?.completion_tokens ?? 0,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    quire: (usage as unknown as { quire: Asked["quire"] }).quire,
  };
}

/** A second turn that runs on for some seconds; resolves when its first words are here. */
async function beginLong(quire: QuireProcess, sessionId: string): Promise<{ ended: Promise<unknown> }> {
  await say(quire, [{ role: "user", content: `A long one. ${opening}` }], sessionId);
  const client = new OpenAI({ baseURL: `${quire.url}/v1`, apiKey: quire.apiKey, maxRetries: 0 });
  const stream = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: ask("Kelino") }],
    stream: true,
    temperature: 0,
    max_tokens: 4000,
    logit_bias: { 259: -100 },
    ...{ quire: { session_id: sessionId } },
  });
  const begun = Promise.withResolvers<void>();
  const read = async () => {
    let text = "";
    let finish: string | null | undefined;
    for await (const { choices } of stream) {
      text += choices[0]?.delta.content ?? "";
      finish = choices[0]?.finish_reason ?? finish;
      if (text !== "") begun.resolve();
    }
    return { text, finish };
  };
  const ended = read().catch((error: unknown) => error);
  await begun.promise;
  return { ended };
}

const tokensOf = (turn: Asked): number => turn.promptTokens + turn.completionTokens;

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let quire: QuireProcess;
beforeAll(async () => {
  folder = await temporaryFolder();
  quire = await startQuire({ dataPath: folder.path, throughNpm: true });
});
afterAll(async () => {
  await quire?.kill();
  await folder?.remove();
});

describe("what npm start prints", () => {
  it("is a curl line that works when pasted", () => {
    const body = JSON.parse(execFileSync("sh", ["-c", quire.curl], { encoding: "utf8", timeout: 30_000 })) as {
      choices: { message: { content: string } }[];
    };
    expect(body.choices[0]?.message.content).toBe("The code of Badoru is 4821.");
  });

  it("is the address of a chat page", async () => {
    const page = await fetch(quire.playgroundUrl);
    expect(page.status).toBe(200);
    expect(page.headers.get("content-type")).toMatch(/^text\/html/);
    const html = await page.text();
    expect(html).toMatch(/<title>.*Quire.*<\/title>/);
    const scripts = [...html.matchAll(/<script[^>]+src="([^"]+)"/g)].map(([, source]) => source ?? "");
    expect(scripts.length).toBeGreaterThan(0);
    for (const source of scripts) expect((await fetch(new URL(source, quire.url))).status).toBe(200);
  });

  it("is the engine's address and process id", async () => {
    expect((await fetch(`${quire.engineUrl}/healthz`)).status).toBe(200);
    expect(() => process.kill(quire.enginePid, 0)).not.toThrow();
    expect(quire.stderr()).toBe("");
  });
});

describe("what it refuses, in one line with exit code 1", () => {
  const port = (url: string): string => new URL(url).port;

  it("a taken port", async () => {
    for (const [flag, url] of [
      ["--port", quire.url],
      ["--engine-port", quire.engineUrl],
    ] as const) {
      const others = ["--port=0", "--engine-port=0", `--data=${folder.path}/other`];
      const result = await runQuire(["start", ...others, flag, port(url)]);
      const stderr = `quire: port ${port(url)} is taken; choose another with ${flag}\n`;
      expect(result).toEqual({ code: 1, signal: null, stdout: "", stderr });
    }
  });

  it("a missing model, a bad flag, a data folder in use", async () => {
    const free = ["start", "--port=0", "--engine-port=0"];
    const missing = await runQuire([...free, "--model", "weights/none"]);
    const stderr = "quire: model folder weights/none is not there; name one with --model\n";
    expect(missing).toEqual({ code: 1, signal: null, stdout: "", stderr });
    const bad = await runQuire([...free, "--budget", "100"]);
    expect(bad).toMatchObject({ code: 1, stdout: "" });
    expect(bad.stderr).toMatch(/^quire: --budget: must be a multiple of 16[^\n]*\n$/);
    const shared = await runQuire([...free, `--data=${folder.path}`]);
    expect(shared).toMatchObject({ code: 1, stdout: "" });
    expect(shared.stderr).toMatch(/^quire: data folder \S+ is in use by process \d+; choose another with --data\n$/);
  });
});

describe("a plain OpenAI client that sends its whole transcript", () => {
  let first: Asked;
  let second: Asked;
  let transcript: Transcript;
  let last: Asked;

  it("finds its first turn in the cache", async () => {
    first = await say(quire, [{ role: "user", content: opening }]);
    expect(first.text).toBe(answer("Badoru"));
    transcript = [
      { role: "user", content: opening },
      { role: "assistant", content: first.text },
      { role: "user", content: ask("Kelino") },
    ];
    second = await say(quire, transcript);
    expect(second.text).toBe(answer("Kelino"));
    expect(second.cachedTokens).toBe(tokensOf(first));
    expect(second.quire.session_id).toBe(first.quire.session_id);
  });

  it("may ask the same again: that is the whole transcript, not a continuation", async () => {
    const again = await say(quire, [{ role: "user", content: opening }]);
    expect(again).toMatchObject({ text: first.text, promptTokens: first.promptTokens });
    expect(again.cachedTokens).toBeGreaterThan(0);
    expect(again.quire.session_id).not.toBe(first.quire.session_id);
  });

  it("loses nothing when the engine is killed: it is started again, and the pages come from the store", async () => {
    // Two conversations that are the same so far: one is asked on before the kill, the other after it.
    for (const id of ["undisturbed", "killed"]) {
      await say(quire, [{ role: "user", content: `Two of a kind. ${opening}` }], id);
      last = await say(quire, [{ role: "user", content: ask("Kelino") }], id);
    }
    const undisturbed = await say(quire, [{ role: "user", content: ask("Badoru") }], "undisturbed");
    await untilPersisted(last);
    await untilPersisted(second);
    const whole = await (await beginLong(quire, "whole")).ended;
    expect(whole).toMatchObject({ finish: "length" });
    const interrupted = await beginLong(quire, "interrupted");
    killQuietly(quire.enginePid);
    await until(() => /the engine is back \(pid \d+\)/.test(quire.stderr()), "the engine to be back");
    const [death, back, ...rest] = quire.stderr().trimEnd().split("\n");
    expect(death).toMatch(
      /^quire: the engine ended by SIGKILL \(log: \S+\); starting it again on port \d+ \(1 of 5 within a minute\)$/,
    );
    expect(rest).toEqual([]);
    const pid = Number(/pid (\d+)/.exec(back ?? "")?.[1]);
    expect(pid).not.toBe(quire.enginePid);
    // The turn that ran when the only engine died has waited for it and gone on, without a letter too many or too few.
    expect(await interrupted.ended).toEqual(whole);
    const resumed = await say(quire, [{ role: "user", content: ask("Badoru") }], "killed");
    expect(resumed.text).toBe(answer("Badoru"));
    expect(resumed.logprobs.length).toBeGreaterThan(20);
    expect(resumed.logprobs).toEqual(undisturbed.logprobs);
    expect(resumed.cachedTokens).toBe(tokensOf(last));
    expect(resumed.quire.source.store).toBe(tokensOf(last));
    expect(resumed.quire.bytes_fetched).toBeGreaterThan(0);
    const plain = await say(quire, [
      ...transcript,
      { role: "assistant", content: second.text },
      { role: "user", content: ask("Badoru") },
    ]);
    expect(plain.text).toBe(answer("Badoru"));
    expect(plain.cachedTokens).toBe(tokensOf(second));
  });
});

describe("the end", () => {
  let last: Asked;
  const restart: Transcript = [{ role: "user", content: `Once more. ${opening}` }];

  it.runIf(process.platform === "linux")("by SIGTERM leaves no process (Linux only)", async () => {
    // Not vacuous: npm, the command, the engine, the guard, wrangler and workerd are there before.
    expect(quire.descendants().length).toBeGreaterThanOrEqual(5);
    expect(quire.descendants().map(({ name }) => name)).toContain("workerd");
    last = await say(quire, restart);
    // At once: the turn is acknowledged, its pages are not stored yet.
    const ended = await quire.signal("SIGTERM");
    expect([0, 143]).toContain(ended.code ?? 143);
    await until(() => quire.descendants().length === 0, "no process to be left", 5_000);
    await expect(fetch(`${quire.url}/healthz`)).rejects.toThrow();
    await expect(fetch(`${quire.engineUrl}/healthz`)).rejects.toThrow();
  });

  it("loses nothing that was acknowledged", async () => {
    const { apiKey } = quire;
    quire = await startQuire({ dataPath: folder.path });
    expect(quire.apiKey).toBe(apiKey);
    const next = await say(quire, [
      ...restart,
      { role: "assistant", content: last.text },
      { role: "user", content: ask("Kelino") },
    ]);
    expect(next.text).toBe(answer("Kelino"));
    expect(next.cachedTokens).toBe(tokensOf(last));
    expect(next.quire.source.store).toBe(tokensOf(last));
    expect(next.quire.session_id).toBe(last.quire.session_id);
  });

  it("by SIGINT leaves no process, either, and exit code 0", async () => {
    expect(await quire.signal("SIGINT")).toEqual({ code: 0, signal: null });
    await until(() => quire.descendants().length === 0, "no process to be left", 5_000);
    expect(quire.stderr()).toBe("");
  });

  it.runIf(process.platform === "linux")("of the edge is the end of everything, in one line (Linux only)", async () => {
    quire = await startQuire({ dataPath: folder.path });
    const edge = quire.descendants().find(({ command }) => command.includes("guard.mjs"));
    expect(edge).toBeDefined();
    killQuietly(edge?.pid ?? 0);
    expect(await quire.ended).toEqual({ code: 1, signal: null });
    expect(quire.stderr().trimEnd().split("\n").at(-1)).toMatch(/^quire: the edge ended .*\(log: \S+\)$/);
    await until(() => quire.descendants().length === 0, "no process to be left", 5_000);
  });
});

/** Waits until the edge's object store holds all of a session up to a turn. */
async function untilPersisted(turn: Asked): Promise<void> {
  const secrets = JSON.parse(readFileSync(`${folder.path}/secrets.json`, "utf8")) as Secrets;
  const endpoint = encodeURIComponent(`${quire.url}/cdn-cgi/local/r2/s3`);
  const store = await openStore(`s3://${bucketName}?endpoint=${endpoint}`, storeEnvironment(secrets));
  const isThere = async () =>
    ((await sessionManifest(store, turn.quire.session_id))?.tokenCount ?? 0) >= tokensOf(turn);
  await until(isThere, "the session to be stored");
  await store.close();
}
