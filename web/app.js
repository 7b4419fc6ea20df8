/** The playground: one conversation with the edge that served this page. Text is only ever set as text. */

const STORAGE = "quire-playground";
/** How often a refused turn is asked again: a session may be ending its last one (after a stop), a killed engine may be starting again. */
const TRIES_MAX = { session_busy: 8, no_engine: 40, engine_failed: 40 };
const AGAIN_MS = 400;
const LONG_TEXT_LENGTH = 1_200;
const FACT_COUNT = 6;

const byId = (id) => document.getElementById(id);
const IDS = "key model session policy exact log alert suggestions input counter demo stop send";
const ui = Object.fromEntries(IDS.split(" ").map((id) => [id, byId(id)]));
/** The fields of the settings that a reload keeps as they are, beside key and session. */
const SETTINGS = ["policy", "budget", "max-tokens", "temperature"];
const SESSION_HINT = byId("session-hint").textContent;

/** What survives a reload of the tab; the server remembers the conversation itself. */
const state = { messages: [], facts: [], turn: undefined, atEnd: true };

class ApiError extends Error {
  constructor(message, code, retryAfterMs) {
    super(message);
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

async function call(path, { method = "GET", body, signal } = {}) {
  const headers = { authorization: `Bearer ${ui.key.value.trim()}`, "content-type": "application/json" };
  const response = await fetch(path, { method, signal, headers, body: JSON.stringify(body) });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const retryAfterSeconds = Number(response.headers.get("retry-after") ?? 0);
  const message = answer.error?.message ?? `The server answered with status ${response.status}.`;
  throw new ApiError(message, answer.error?.code, retryAfterSeconds * 1000);
}

/** Payloads of an event stream, whatever its line ends are and wherever it is cut. */
async function* payloads(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let line = "";
  let data = [];
  try {
    for (let result = await reader.read(); !result.done; result = await reader.read()) {
      const lines = (line + result.value).split(/\r\n|\n|\r(?!$)/);
      line = lines.pop();
      for (const text of lines) {
        if (text === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        } else if (text.startsWith("data:")) {
          data.push(text.slice(5).replace(/^ /, ""));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

function turnBody(text) {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  const selection = { budget_tokens: number("budget"), exact: ui.exact.checked };
  if (ui.policy.value !== "") selection.policy = ui.policy.value;
  return {
    model: ui.model.value,
    messages: [{ role: "user", content: text }],
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: number("max-tokens"),
    temperature: number("temperature"),
    quire: { session_id: ui.session.value, selection },
  };
}

/** Opens a turn; one that was refused is asked again as often as {@link TRIES_MAX} says. */
async function openTurn(text, signal) {
  for (let tries = 1; ; tries++) {
    try {
      const response = await call("/v1/chat/completions", { method: "POST", body: turnBody(text), signal });
      if (byId("status").classList.contains("failed")) guarded(connect)();
      return response;
    } catch (error) {
      if (!Object.hasOwn(TRIES_MAX, error.code ?? "")) throw error;
      if (error.code !== "session_busy") showStatus("No engine answers", "failed");
      if (tries >= TRIES_MAX[error.code]) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

async function send(text) {
  const controller = new AbortController();
  state.turn = controller;
  showAlert("");
  showBusy(true);
  const user = addMessage({ role: "user", text });
  const reply = addMessage({ role: "assistant", text: "" });
  reply.element.classList.add("writing");
  const times = { began: performance.now(), first: undefined };
  try {
    let usage;
    let isWhole = false;
    for await (const payload of payloads(await openTurn(text, controller.signal))) {
      isWhole = payload === "[DONE]";
      if (isWhole) break;
      const event = JSON.parse(payload);
      if (event.error) throw new ApiError(event.error.message, event.error.code);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (choice?.delta?.content) {
        times.first ??= performance.now();
        reply.append(choice.delta.content);
      }
      if (choice?.finish_reason === "length") reply.note("Ended at the longest reply.");
    }
    if (!isWhole) throw new ApiError("The reply broke off before its end.");
    reply.message.isWhole = true;
    if (usage) showUsage(usage, { ...times, ended: performance.now() });
  } catch (error) {
    failTurn(error, { controller, user, reply });
  } finally {
    reply.element.classList.remove("writing");
    state.turn = undefined;
    showBusy(false);
    remember();
    ui.input.focus();
  }
}

/** A turn without a word of reply did not happen: its text goes back to the field, before what was typed meanwhile. */
function failTurn(error, { controller, user, reply }) {
  const isStopped = controller.signal.aborted;
  if (reply.message.text === "") {
    for (const added of [user, reply]) added.remove();
    fillInput(user.message.text, ui.input.value);
  } else {
    reply.note(isStopped ? "Stopped." : "Broken off.");
  }
  if (!isStopped) showError(error);
}

function addMessage(message) {
  byId("welcome").hidden = true;
  state.messages.push(message);
  const element = document.createElement("article");
  element.className = `message ${message.role}`;
  const text = cell("div", message.text, { className: "text" });
  element.append(cell("h3", message.role === "user" ? "You" : "Model"), text);
  if (message.text.length > LONG_TEXT_LENGTH) addMore(element, text);
  ui.log.append(element);
  state.atEnd = true;
  followEnd();
  const note = (words) => {
    element.append(cell("p", words, { className: "note" }));
    message.note = words;
  };
  if (message.note) note(message.note);
  return {
    element,
    message,
    note,
    append(delta) {
      message.text += delta;
      text.append(delta);
      followEnd();
    },
    remove() {
      element.remove();
      state.messages.splice(state.messages.indexOf(message), 1);
      byId("welcome").hidden = state.messages.length > 0;
    },
  };
}

/** Keeps the newest words in sight, unless the reader has scrolled up. */
function followEnd() {
  if (state.atEnd) ui.log.scrollTop = ui.log.scrollHeight;
}

/** Only the beginning of a long text is on the page until all of it is asked for: a browser takes longer to lay out 20 MB than to send them. */
function addMore(element, text) {
  const whole = text.textContent;
  const more = cell("button", "", { type: "button", className: "more" });
  element.classList.add("long");
  const label = (shown) => {
    text.textContent = shown ? whole : whole.slice(0, LONG_TEXT_LENGTH);
    more.textContent = shown ? "Show less" : `Show all ${count(whole.length)} characters`;
    more.setAttribute("aria-expanded", String(shown));
  };
  label(false);
  more.addEventListener("click", () => label(element.classList.toggle("shown")));
  element.append(more);
}

const count = (value) => Number(value ?? 0).toLocaleString("en");
const milliseconds = (value) => (value === undefined ? "–" : `${count(Math.round(value))} ms`);

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let amount = Number(value ?? 0);
  let unit = 0;
  for (; amount >= 1024 && unit < units.length - 1; unit++) amount /= 1024;
  return `${unit === 0 ? amount : amount.toFixed(1)} ${units[unit]}`;
}

function showUsage(usage, { began, first, ended }) {
  const quire = usage.quire ?? {};
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const share = (part, whole) => (whole > 0 ? part / whole : 0);
  const percent = (part, whole) => (whole > 0 ? ` (${Math.round(share(part, whole) * 100)} %)` : "");
  byId("usage-empty").hidden = true;
  byId("usage-body").hidden = false;
  byId("reused-meter").value = share(cached, usage.prompt_tokens);
  byId("reused-text").textContent =
    `${count(cached)} of ${count(usage.prompt_tokens)} tokens${percent(cached, usage.prompt_tokens)}`;
  byId("selected-meter").value = quire.pages_in_context > 0 ? share(quire.pages_selected, quire.pages_in_context) : 1;
  byId("selected-text").textContent =
    quire.pages_in_context > 0
      ? `${count(quire.pages_selected)} of ${count(quire.pages_in_context)}${percent(quire.pages_selected, quire.pages_in_context)}`
      : "all of them: below the budget, or dense";
  const rows = [
    ["First token, seen here", milliseconds(first === undefined ? undefined : first - began)],
    ["First token, engine", milliseconds(quire.first_token_ms)],
    ["Whole turn", milliseconds(ended - began)],
    ["Reply", `${count(usage.completion_tokens)} tokens`],
    ["Reused from device", `${count(quire.source?.device)} tokens`],
    ["Reused from host", `${count(quire.source?.host)} tokens`],
    ["Reused from store", `${count(quire.source?.store)} tokens`],
    ["Computed again", `${count(quire.recomputed_tokens)} tokens`],
    [
      "Fetched before first token",
      `${bytes(quire.bytes_before_first_token)}, ${count(quire.pages_before_first_token)} pages`,
    ],
    ["Fetched in all", `${bytes(quire.bytes_fetched)}, ${count(quire.pages_fetched)} pages`],
    ["Policy", `${quire.policy ?? "–"}${quire.exact ? ", exact" : ""}`],
    ["Budget", quire.budget_tokens ? `${count(quire.budget_tokens)} tokens` : "–"],
    ["Pages missed", count(quire.pages_missed)],
    ["KV read", bytes(quire.kv_bytes_read)],
    ["Summaries read", bytes(quire.metadata_bytes_read)],
  ];
  byId("usage-list").replaceChildren(...rows.flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]));
}

const cell = (tag, textContent, fields) => Object.assign(document.createElement(tag), { textContent, ...fields });

function showBusy(busy) {
  ui.log.setAttribute("aria-busy", String(busy));
  ui.stop.hidden = !busy;
  ui.send.hidden = busy;
  // Whoever goes to another session takes the conversation from the page, and a turn that is asked again into the other session.
  ui.session.readOnly = busy;
  for (const id of ["new", "fork", "delete", "demo"]) byId(id).disabled = busy;
  for (const button of ui.suggestions.children) button.disabled = busy;
}

function showStatus(text, kind) {
  byId("status").textContent = text;
  byId("status").className = `status ${kind}`;
}

function showAlert(text) {
  byId("alert-text").textContent = text;
  ui.alert.hidden = text === "";
}

function showError(error) {
  const wait = error.retryAfterMs > 0 ? ` Try again in ${Math.ceil(error.retryAfterMs / 1000)} s.` : "";
  if (error.code === "invalid_api_key") {
    showStatus("The key was refused", "failed");
    byId("settings").open = true;
  }
  const known = error instanceof ApiError;
  showAlert(
    known ? `${error.message}${wait}${error.code ? ` [${error.code}]` : ""}` : "The connection to the server failed.",
  );
}

/** Runs a button's work; what goes wrong is shown. */
const guarded = (work) => async () => {
  showAlert("");
  try {
    await work();
  } catch (error) {
    showError(error);
  }
};

function beginSession(id) {
  ui.session.value = id;
  for (const element of ui.log.querySelectorAll(".message")) element.remove();
  state.messages = [];
  state.facts = [];
  byId("welcome").hidden = false;
  byId("usage-empty").hidden = false;
  byId("usage-body").hidden = true;
  byId("session-hint").textContent = SESSION_HINT;
  showSuggestions();
  remember();
}

const hex = (word) => word.toString(16).padStart(8, "0");
/** Random; crypto.randomUUID is not there in a page that came over plain http from another machine. */
const newSessionId = () => `s-${[...crypto.getRandomValues(new Uint32Array(4))].map(hex).join("")}`;
const sessionPath = () => `/v1/sessions/${encodeURIComponent(ui.session.value)}`;

/** What a session that is gone on with has said elsewhere: the server keeps it, and this page does not have its words. */
async function showEarlier() {
  const path = sessionPath();
  const { turns, tokens } = await (await call(path)).json();
  const earlier = `Goes on behind ${count(turns)} earlier ${turns === 1 ? "turn" : "turns"} (${count(tokens)} tokens), which are not shown.`;
  if (path === sessionPath() && turns > 0) byId("session-hint").textContent = earlier;
}

async function fork() {
  const { id } = await (await call(`${sessionPath()}/fork`, { method: "POST" })).json();
  ui.session.value = id;
  const last = ui.log.querySelector(".message:last-of-type");
  last?.append(cell("p", `From here on in the fork ${id}.`, { className: "note" }));
  remember();
}

async function remove() {
  if (!confirm("Delete this conversation on the server?")) return;
  try {
    await call(sessionPath(), { method: "DELETE" });
  } catch (error) {
    if (error.code !== "session_not_found") throw error;
  }
  beginSession(newSessionId());
}

async function connect() {
  if (ui.key.value.trim() === "") {
    showStatus("Enter the API key", "failed");
    byId("settings").open = true;
    return;
  }
  const { data } = await (await call("/v1/models")).json();
  const chosen = ui.model.value;
  const names = data.map((model) => model.id);
  ui.model.replaceChildren(...["default", ...names].map((name) => new Option(name, name)));
  ui.model.value = names.includes(chosen) ? chosen : "default";
  showStatus(names.length > 0 ? `Connected: ${names.join(", ")}` : "Connected; no engine yet", "connected");
}

const pick = (items) => items[Math.floor(Math.random() * items.length)];

/** A name of three syllables and a number of four digits, as house-0 has learnt to remember them. */
function makeFact() {
  const syllable = () => pick([..."bdfgklmnprstvz"]) + pick([..."aeiou"]);
  const name = syllable() + syllable() + syllable();
  return { name: name.charAt(0).toUpperCase() + name.slice(1), code: String(1000 + Math.floor(Math.random() * 9000)) };
}

function insertDemo() {
  const sentences = byId("passage")
    .content.textContent.trim()
    .replace(/\s+/g, " ")
    .split(/(?<=[.?!]"?) /);
  const facts = new Map();
  while (facts.size < FACT_COUNT) {
    const fact = makeFact();
    facts.set(fact.name, fact);
  }
  state.facts = [...facts.values()];
  const stride = Math.floor(sentences.length / FACT_COUNT);
  for (const [index, { name, code }] of [...state.facts.entries()].reverse()) {
    sentences.splice(index * stride + 1, 0, `The code of ${name} is ${code}.`);
  }
  ui.input.value = `${sentences.join(" ")} What is the code of ${pick(state.facts).name}?`;
  countInput();
  showSuggestions();
  ui.input.focus();
  ui.input.scrollTop = ui.input.scrollHeight;
}

function showSuggestions() {
  ui.suggestions.hidden = state.facts.length === 0;
  ui.suggestions.replaceChildren(
    ...state.facts.map(({ name, code }) => {
      const button = cell("button", `${name}?`, { type: "button", title: `The passage says ${code}` });
      button.addEventListener("click", () => send(`What is the code of ${name}?`));
      return button;
    }),
  );
}

function fillInput(...texts) {
  ui.input.value = texts.filter(Boolean).join("\n");
  countInput();
}

function countInput() {
  ui.counter.textContent = ui.input.value.length > 200 ? `${count(ui.input.value.length)} characters` : "";
}

function submit() {
  const text = ui.input.value;
  if (state.turn !== undefined || text.trim() === "") return;
  if (ui.session.value.trim() === "") ui.session.value = newSessionId();
  if (!ui.session.checkValidity()) {
    showAlert('A session\'s name has 1 to 128 characters of A-Z a-z 0-9 . _ : - and is not "." or ".."');
    return;
  }
  ui.input.value = "";
  countInput();
  send(text);
}

function remember() {
  const { messages, facts } = state;
  const kept = { key: ui.key.value, session: ui.session.value, draft: ui.input.value, messages, facts };
  kept.settings = { ...Object.fromEntries(SETTINGS.map((id) => [id, byId(id).value])), exact: ui.exact.checked };
  try {
    sessionStorage.setItem(STORAGE, JSON.stringify(kept));
  } catch {
    // A full or forbidden storage costs the picture of the conversation after a reload, nothing else.
  }
}

/** The key that the address brings, which does not stay there; null without one. */
function takeKey() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key !== null) history.replaceState(null, "", location.pathname);
  return key;
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(sessionStorage.getItem(STORAGE) ?? "{}");
  } catch {
    // As in remember().
  }
  ui.key.value = takeKey() ?? kept.key ?? "";
  ui.session.value = kept.session ?? newSessionId();
  for (const id of SETTINGS) byId(id).value = kept.settings?.[id] ?? byId(id).value;
  ui.exact.checked = kept.settings?.exact ?? ui.exact.checked;
  const messages = kept.messages ?? [];
  // The page was left before the first word of a reply: that turn did not happen.
  const last = messages.at(-1);
  const [asked] = last?.text === "" && !last.isWhole ? messages.splice(-2) : [];
  if (last?.role === "assistant" && !last.isWhole) last.note ??= "Broken off.";
  fillInput(asked?.text, kept.draft);
  for (const message of messages) addMessage(message);
  state.facts = kept.facts ?? [];
  showSuggestions();
}

ui.log.addEventListener("scroll", () => {
  state.atEnd = ui.log.scrollHeight - ui.log.scrollTop - ui.log.clientHeight < 60;
});
new ResizeObserver(followEnd).observe(ui.log);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
ui.input.addEventListener("input", countInput);
ui.input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") state.turn?.abort();
});
ui.stop.addEventListener("click", () => state.turn?.abort());
ui.demo.addEventListener("click", insertDemo);
byId("alert-close").addEventListener("click", () => showAlert(""));
byId("new").addEventListener("click", () => beginSession(newSessionId()));
byId("fork").addEventListener("click", guarded(fork));
byId("delete").addEventListener("click", guarded(remove));
ui.session.addEventListener("change", () => {
  beginSession(ui.session.value.trim() || newSessionId());
  // There may be none of that name, or no key yet: then there is nothing to tell.
  showEarlier().catch(() => undefined);
});
ui.key.addEventListener("change", () => {
  remember();
  guarded(connect)();
});
// The link that npm start prints, followed where the page is open already.
addEventListener("hashchange", () => {
  const key = takeKey();
  if (key === null) return;
  ui.key.value = key;
  remember();
  guarded(connect)();
});
addEventListener("pagehide", remember);

if (matchMedia("(max-width: 48rem)").matches) for (const id of ["settings", "usage"]) byId(id).open = false;
recall();
guarded(connect)();
