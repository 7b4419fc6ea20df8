/** The playground in a browser, against a server whose answers the test writes word by word. */
import { readFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type BrowserPage, openBrowserPage } from "../support/chromium.ts";

const FILES: Record<string, [name: string, type: string]> = {
  "/": ["index.html", "text/html"],
  "/app.js": ["app.js", "text/javascript"],
  "/style.css": ["style.css", "text/css"],
};
const LOOKS_MAX = 1_000;

interface Turn {
  key: string | undefined;
  body: { messages: { content: string }[]; quire: { session_id: string } };
  answer: ServerResponse;
}

/** An edge that knows one model and leaves every turn to the test. */
async function openEdge() {
  const turns: Turn[] = [];
  const keys: (string | undefined)[] = [];
  const refusals: string[] = [];
  const server = createServer(async (request, response) => {
    const [name, type] = FILES[request.url ?? ""] ?? [];
    const key = request.headers.authorization?.replace("Bearer ", "");
    if (name !== undefined) {
      response.setHeader("content-type", String(type));
      response.end(readFileSync(fileURLToPath(new URL(`../../web/${name}`, import.meta.url))));
    } else if (request.url === "/v1/models") {
      keys.push(key);
      response.setHeader("content-type", "application/json").end(JSON.stringify({ data: [{ id: "tiny" }] }));
    } else if (request.url?.startsWith("/v1/sessions/")) {
      const known = request.url === "/v1/sessions/known";
      response.writeHead(known ? 200 : 404, { "content-type": "application/json" });
      response.end(JSON.stringify(known ? { turns: 2, tokens: 1084 } : { error: { code: "session_not_found" } }));
    } else if (refusals.length > 0) {
      const error = { message: "Refused.", code: refusals.shift() };
      response.writeHead(503, { "content-type": "application/json" }).end(JSON.stringify({ error }));
    } else {
      let text = "";
      for await (const chunk of request) text += chunk;
      response.setHeader("content-type", "text/event-stream");
      response.flushHeaders();
      turns.push({ key, body: JSON.parse(text), answer: response });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => new Promise((resolve) => server.close(resolve).closeAllConnections());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, turns, keys, refusals, close };
}

describe("the playground in a browser", () => {
  let edge: Awaited<ReturnType<typeof openEdge>>;
  let page: BrowserPage | undefined;

  beforeAll(async () => {
    edge = await openEdge();
    page = await openBrowserPage(`${edge.url}/#key=first`);
  });
  afterAll(async () => {
    await page?.close();
    await edge.close();
  });
  beforeEach(async ({ skip }) => {
    if (page === undefined && process.env.CI === undefined) skip("no browser for this platform");
    await seen(status, "Connected: tiny");
    await evaluate(`document.getElementById("input").value = ""`);
    await evaluate("document.getElementById('new').click()");
  });

  const evaluate = async (expression: string) => page?.evaluate(expression);
  const value = (id: string) => evaluate(`document.getElementById("${id}").value`);
  const texts = (selector: string) =>
    evaluate(`[...document.querySelectorAll(${JSON.stringify(selector)})].map((one) => one.textContent)`);
  const status = `document.getElementById("status").textContent`;
  const alert = `document.getElementById("alert-text").textContent`;
  const say = (answer: ServerResponse, content: string) =>
    answer.write(`data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`);

  /** Waits until an expression has a value; the page may be between two loads meanwhile. */
  async function seen(expression: string, wanted: unknown): Promise<void> {
    for (let look = 0; ; look++) {
      const found = await evaluate(expression).catch(String);
      if (JSON.stringify(found) === JSON.stringify(wanted)) return;
      if (look === LOOKS_MAX) expect(found).toEqual(wanted);
      await setTimeout(25);
    }
  }

  /** Loads the page again, and waits until it is the new one that answers. */
  async function reload(): Promise<void> {
    await evaluate("globalThis.isLeft = true, location.reload()").catch(() => undefined);
    await seen("globalThis.isLeft === true", false);
    await seen(status, "Connected: tiny");
  }

  /** Types a message, sends it, and gives the turn that comes of it. */
  async function ask(text: string): Promise<Turn> {
    const before = edge.turns.length;
    await evaluate(`document.getElementById("input").value = ${JSON.stringify(text)}`);
    await evaluate(`document.getElementById("send").click()`);
    for (let look = 0; edge.turns.length === before && look < LOOKS_MAX; look++) await setTimeout(25);
    return edge.turns.at(-1) as Turn;
  }

  it("shows a reply as it comes, and takes the next message when it is whole", async () => {
    const { answer, body, key } = await ask("<b>hi</b>");
    expect(key).toBe("first");
    expect(body.messages).toEqual([{ role: "user", content: "<b>hi</b>" }]);
    say(answer, "one ");
    await seen(`document.querySelector(".assistant .text").textContent`, "one ");
    say(answer, "two");
    answer.end("data: [DONE]\n\n");
    await seen(`document.getElementById("send").hidden`, false);
    expect(await texts(".message h3, .message .text")).toEqual(["You", "<b>hi</b>", "Model", "one two"]);
    expect(await evaluate(alert)).toBe("");
  });

  it("names its sessions also in a page that came over plain http, whose crypto has no randomUUID", async () => {
    await evaluate(`document.getElementById("session").value = "", delete Crypto.prototype.randomUUID`);
    await evaluate("document.getElementById('new').click()");
    const name = await value("session");
    expect(name).toMatch(/^s-[0-9a-f]{32}$/);
    await evaluate("document.getElementById('new').click()");
    expect(await value("session")).not.toBe(name);
  });

  it("says what a session that it goes on with has said elsewhere, and nothing of a new one", async () => {
    const name = (id: string) =>
      evaluate(`{
        const field = document.getElementById("session");
        field.value = "${id}";
        field.dispatchEvent(new Event("change"));
      }`);
    const hint = `document.getElementById("session-hint").textContent`;
    const usual = await evaluate(hint);
    await name("known");
    await seen(hint, "Goes on behind 2 earlier turns (1,084 tokens), which are not shown.");
    await name("new");
    await seen(hint, usual);
    await setTimeout(100);
    expect([await evaluate(hint), await evaluate(alert)]).toEqual([usual, ""]);
  });

  it("shows how much of the pages a turn attended to, and a full bar where nothing was selected", async () => {
    for (const [selected, inContext, share] of [
      [25, 100, 0.25],
      [0, 0, 1],
    ]) {
      const { answer } = await ask("hi");
      const quire = { pages_selected: selected, pages_in_context: inContext };
      answer.write(
        `data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 8, completion_tokens: 1, quire } })}\n\n`,
      );
      answer.end("data: [DONE]\n\n");
      await seen(`document.getElementById("send").hidden`, false);
      await seen(`document.getElementById("selected-meter").value`, share);
    }
    expect(await texts("#selected-text")).toEqual(["all of them: below the budget, or dense"]);
  });

  it.each([
    { width: 1280, height: 800 },
    { width: 1280, height: 500 },
    { width: 800, height: 500 },
    { width: 844, height: 390 },
    { width: 390, height: 844 },
  ])("has every question about the passage, the field and some of the talk in a window of %j", async (window) => {
    await page?.resize(window);
    await evaluate(`document.getElementById("demo").click()`);
    const box = (selector: string) =>
      evaluate(`(({ left, top, right, bottom, height }) => ({ left, top, right, bottom, height }))(
        document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect())`) as Promise<
        Record<string, number>
      >;
    const place = await box("#suggestions");
    for (let index = 1; index <= 6; index++) {
      const chip = await box(`#suggestions button:nth-of-type(${index})`);
      expect(chip.left).toBeGreaterThanOrEqual(place.left ?? 0);
      expect(chip.top).toBeGreaterThanOrEqual(place.top ?? 0);
      expect(chip.right).toBeLessThanOrEqual(Math.min(place.right ?? 0, window.width));
      expect(chip.bottom).toBeLessThanOrEqual(place.bottom ?? 0);
    }
    expect((await box("#log")).height).toBeGreaterThanOrEqual(120);
    expect((await box("#send")).bottom).toBeLessThanOrEqual(window.height);
    await page?.resize({ width: 800, height: 600 });
  });

  it("shows the beginning of a long message, all of it where that is asked for, and lays nothing else out", async () => {
    const { answer } = await ask("word ".repeat(2_000));
    say(answer, "read");
    answer.end("data: [DONE]\n\n");
    await seen(`document.getElementById("send").hidden`, false);
    const shown = `document.querySelector(".user .text").textContent.length`;
    expect(await evaluate(shown)).toBe(1_200);
    await evaluate(`document.querySelector(".user .more").click()`);
    expect(await evaluate(shown)).toBe(10_000);
    await evaluate(`document.querySelector(".user .more").click()`);
    expect(await evaluate(shown)).toBe(1_200);
    await reload();
    await seen(shown, 1_200);
  });

  it("says so when a reply ends before its end", async () => {
    const { answer } = await ask("hi");
    say(answer, "half");
    answer.end();
    await seen(alert, "The reply broke off before its end.");
    expect(await texts(".message .text, .message .note")).toEqual(["hi", "half", "Broken off."]);
  });

  it("asks again while an engine that was killed starts again, and says that none answers", async () => {
    edge.refusals.push("engine_failed", "no_engine", "no_engine");
    const asking = ask("hi");
    await seen(status, "No engine answers");
    const { answer } = await asking;
    say(answer, "here");
    answer.end("data: [DONE]\n\n");
    await seen(status, "Connected: tiny");
    await seen(`document.getElementById("send").hidden`, false);
    expect(await texts(".message .text")).toEqual(["hi", "here"]);
    expect(await evaluate(alert)).toBe("");
  });

  it("keeps the settings when the page is loaded again", async () => {
    const settings = { policy: "quest", budget: "512", "max-tokens": "64", temperature: "0.5" };
    const before = await Promise.all(Object.keys(settings).map(value));
    const fill = (values: unknown[]) =>
      evaluate(
        Object.keys(settings)
          .map((id, index) => `document.getElementById("${id}").value = ${JSON.stringify(values[index])}`)
          .join(),
      );
    await fill(Object.values(settings));
    await evaluate(`document.getElementById("exact").checked = false`);
    await reload();
    expect(await Promise.all(Object.keys(settings).map(value))).toEqual(Object.values(settings));
    expect(await evaluate(`document.getElementById("exact").checked`)).toBe(false);
    await evaluate(`document.getElementById("exact").checked = true`);
    await fill(before);
  });

  it("keeps what is there of a turn when the page is loaded again in the middle of it", async () => {
    const { answer } = await ask("hi");
    say(answer, "half a");
    await seen(`document.querySelector(".assistant .text").textContent`, "half a");
    const session = await value("session");
    await reload();
    await seen(`document.getElementById("send").hidden`, false);
    await seen(`document.querySelectorAll(".message").length`, 2);
    expect(await texts(".message .text, .message .note")).toEqual(["hi", "half a", "Broken off."]);
    expect(await value("session")).toBe(session);
  });

  it("keeps a turn whose whole reply was no word when the page is loaded again", async () => {
    const { answer } = await ask("say nothing");
    answer.end("data: [DONE]\n\n");
    await seen(`document.getElementById("send").hidden`, false);
    await reload();
    await seen(`document.querySelectorAll(".message").length`, 2);
    expect(await value("input")).toBe("");
  });

  it("gives the message back of a turn that had no word of reply when the page was loaded again", async () => {
    await ask("what then?");
    await reload();
    await seen(`document.getElementById("input").value`, "what then?");
    expect(await texts(".message")).toEqual([]);
  });

  it("goes on with one session while a turn runs, and loses nothing that was typed meanwhile when it fails", async () => {
    const { answer } = await ask("first");
    expect(await evaluate(`document.getElementById("session").readOnly`)).toBe(true);
    await evaluate(`document.getElementById("input").value = "second"`);
    answer.end(`data: ${JSON.stringify({ error: { message: "No engine.", code: "no_engine" } })}\n\n`);
    await seen(alert, "No engine. [no_engine]");
    expect(await value("input")).toBe("first\nsecond");
    expect(await evaluate(`document.getElementById("session").readOnly`)).toBe(false);
  });

  it("takes the key of a link that is followed while the page is open, and does not leave it in the address", async () => {
    await evaluate(`location.hash = "key=second"`);
    await seen("location.href", `${edge.url}/`);
    for (let look = 0; edge.keys.at(-1) !== "second" && look < LOOKS_MAX; look++) await setTimeout(25);
    expect(edge.keys.at(-1)).toBe("second");
    expect(await value("key")).toBe("second");
  });
});
