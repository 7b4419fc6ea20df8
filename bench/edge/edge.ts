/** `npm run bench -- edge`: what the edge adds to a request and to each of its tokens, in a bare workerd. */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseInteger } from "../../cli/flags.ts";
import { type BenchContext, type BenchResult, defineBench, unlessStopped } from "../bench.ts";
import { quantile } from "../quantile.ts";
import { seededRandom, shuffled } from "../random.ts";
import { type Column, renderTable } from "../table.ts";
import type { BareWorkerd } from "../workerd.ts";
import { type EdgeStack, openEdgeStack } from "./edge-stack.ts";
import { openFloor } from "./floor.ts";
import { openConnection, type TurnOptions, timeTurn } from "./turn-client.ts";

const flags = {
  turns: {
    help: "measured turns of each kind, in turns",
    placeholder: "COUNT",
    fallback: "300",
    parse: parseInteger({ min: 5, max: 100_000 }),
  },
  tokens: {
    help: "tokens of a reply",
    placeholder: "COUNT",
    fallback: "20",
    parse: parseInteger({ min: 2, max: 1_000 }),
  },
  gap: {
    help: "milliseconds between two of them",
    placeholder: "MS",
    fallback: "5",
    parse: parseInteger({ min: 1, max: 1_000 }),
  },
  first: {
    help: "milliseconds that the engine takes from admission to first token",
    placeholder: "MS",
    fallback: "0",
    parse: parseInteger({ min: 0, max: 1_000 }),
  },
} as const;

/** The flags as numbers. */
interface EdgeSettings {
  turns: number;
  tokens: number;
  gap: number;
  first: number;
}

/** Bars, milliseconds at the median. */
const REQUEST_MS_MAX = 1.5;
const TOKEN_MS_MAX = 0.7;

/** Of the order in which kinds take their turns: what a kind finds in the machine's caches depends on who was before it. */
const ORDER_SEED = 1;

/** What the engine says, again and again. */
const REPLY_TOKEN = "a";

/** Turns of a session before another one is begun. */
const SESSION_TURNS = 20;

/** What workerd itself takes: an object that was there, and one that was not. */
const floorKinds = ["floor: an object", "floor: a new object"] as const;
/** What any OpenAI client sends: a transcript, and no name of a session. */
const chatKinds = ["chat, first message", "chat, next message"] as const;
/** In a session that the client names. One that is new is a new object. */
const sessionKinds = ["later turn", "later turn, resumable", "new session", "new session, resumable"] as const;
const edgeKinds = [...chatKinds, ...sessionKinds] as const;
const kinds = ["direct", ...floorKinds, ...edgeKinds] as const;
type Kind = (typeof kinds)[number];

/** Both edges: the whole one, and the one that does nothing. */
interface Edges {
  stack: EdgeStack;
  floor: BareWorkerd;
}

/** Times of one kind, milliseconds. */
interface Samples {
  /** From the request to the first token. */
  first: number[];
  /** From the engine's sending to the client's reading of a token. */
  token: number[];
  /** Of workerd, over all turns. */
  cpuMs: number;
}

interface Row {
  kind: Kind;
  firstMs: Spread;
  tokenMs: Spread;
  /** Of workerd, for a whole turn; undefined where the system does not tell. */
  cpuMsPerTurn: number | undefined;
}

interface Spread {
  p10: number;
  p50: number;
  p90: number;
}

/** The benchmark as the registry names it. */
export const edgeBench = defineBench({
  summary:
    "Turns through the whole edge (key, limits, session log, routing, signature, SSE) to an engine that costs nothing, and straight to that engine:\n" +
    "the difference is what the edge adds. The floor is a Worker and one object that pass bytes on and do nothing; a new session is a new object,\n" +
    "whose storage workerd makes first. A later turn comes within a second of the one before it. What the edge does between an engine's admission and its first\n" +
    "token costs nobody anything where that takes a moment (--first).\n" +
    "One connection, one turn at a time, kinds in an order drawn for each round. A busy machine only ever makes it slower: there the\n" +
    `fastest tenth (p10) tells more than the median. Bars at the median: ${REQUEST_MS_MAX} ms a request, ${TOKEN_MS_MAX} ms a token.`,
  flags,
  async run(values, context) {
    const stack = await openEdgeStack({ tokenCount: values.tokens, gapMs: values.gap, firstMs: values.first });
    let floor: BareWorkerd | undefined;
    try {
      floor = await openFloor(stack.engineUrl);
      return await measure({ stack, floor }, values, context);
    } finally {
      await floor?.close();
      await stack.close();
    }
  },
});

async function measure({ stack, floor }: Edges, values: EdgeSettings, context: BenchContext): Promise<BenchResult> {
  const agents = new Map(kinds.map((kind) => [kind, openConnection()]));
  const samples = new Map(kinds.map((kind): [Kind, Samples] => [kind, { first: [], token: [], cpuMs: 0 }]));
  const talk = new Talk();
  const random = seededRandom(ORDER_SEED);
  // The first tenth warms connections, compilers and objects up.
  for (let round = -Math.ceil(values.turns / 10); round < values.turns && !context.signal.aborted; round++) {
    for (const kind of shuffled(random, kinds)) {
      const agent = agents.get(kind) ?? openConnection();
      const { url, ...options } = talk.request({ stack, floor }, kind, values.tokens);
      const { pid } = isFloor(kind) ? floor : { pid: stack.workerdPid };
      const beforeMs = cpuMs(pid);
      const times = await unlessStopped(timeTurn(url, { ...options, agent }), context.signal);
      if (times === undefined) break;
      const into = samples.get(kind);
      if (round < 0 || !into) continue;
      into.cpuMs += cpuMs(pid) - beforeMs;
      into.first.push((times.tokenMs[0] ?? Number.NaN) - times.sentMs);
      // The first waits for the request; it is counted there.
      for (let index = 1; index < values.tokens; index++) {
        into.token.push((times.tokenMs[index] ?? Number.NaN) - (stack.sentMs[index] ?? Number.NaN));
      }
    }
  }
  for (const agent of agents.values()) agent.destroy();
  const rows = kinds.map((kind): Row => {
    const { first, token, cpuMs: sum } = samples.get(kind) as Samples;
    const cpuMsPerTurn = Number.isNaN(sum) ? undefined : sum / first.length;
    return { kind, firstMs: spreadOf(first), tokenMs: spreadOf(token), cpuMsPerTurn };
  });
  return report(stack, values, rows, context);
}

/** What is said: a later turn goes on with a session that is begun anew every so often, so that it stays short. */
class Talk {
  readonly #sessions = new Map<Kind, { id: string; turnCount: number }>();
  #transcript: { role: string; content: string }[] = [];

  request({ stack, floor }: Edges, kind: Kind, tokenCount: number): Omit<TurnOptions, "agent"> & { url: string } {
    const encoder = new TextEncoder();
    if (kind === "direct" || isFloor(kind)) {
      // The token itself, as it stands in a frame: 97 in four bytes behind msgpack's mark of a binary of four bytes.
      const mark = Buffer.from([0xc4, 4, 97, 0, 0, 0]);
      const floorUrl = `${floor.url}${kind === "floor: a new object" ? "/new" : "/"}`;
      const url = isFloor(kind) ? floorUrl : `${stack.engineUrl}/v1/generate`;
      return { url, headers: {}, body: encoder.encode("x"), mark, tokenCount };
    }
    const message = { role: "user", content: "What is the code of Badoru, and what is the code of Kelino?" };
    const asked = chatKinds.some((each) => each === kind)
      ? { messages: this.#chat(kind, message, tokenCount) }
      : { messages: [message], quire: this.#quireOf(kind) };
    const body = encoder.encode(JSON.stringify({ model: stack.model, stream: true, max_tokens: tokenCount, ...asked }));
    const headers = { authorization: `Bearer ${stack.apiKey}`, "content-type": "application/json" };
    const mark = Buffer.from(`"content":"${REPLY_TOKEN}"`);
    return { url: `${stack.edgeUrl}/v1/chat/completions`, headers, body, mark, tokenCount };
  }

  #quireOf(kind: Kind): object {
    return {
      session_id: kind.startsWith("later") ? this.#sessionOf(kind) : randomUUID(),
      ...(kind.endsWith("resumable") ? { resumable: true } : {}),
    };
  }

  /** A transcript that nobody has sent, or the last one with its reply and another message. */
  #chat(kind: Kind, message: { role: string; content: string }, tokenCount: number): object[] {
    if (kind === "chat, first message") return [{ ...message, content: `${message.content} ${randomUUID()}` }];
    const reply = { role: "assistant", content: REPLY_TOKEN.repeat(tokenCount) };
    const isFresh = this.#transcript.length > 0 && this.#transcript.length < 2 * SESSION_TURNS;
    this.#transcript = isFresh
      ? [...this.#transcript, reply, message]
      : [{ ...message, content: `${message.content} ${randomUUID()}` }];
    return this.#transcript;
  }

  #sessionOf(kind: Kind): string {
    const known = this.#sessions.get(kind);
    const isFresh = known !== undefined && known.turnCount < SESSION_TURNS;
    const { id, turnCount } = isFresh ? known : { id: randomUUID(), turnCount: 0 };
    this.#sessions.set(kind, { id, turnCount: turnCount + 1 });
    return id;
  }
}

function isFloor(kind: Kind): boolean {
  return floorKinds.some((each) => each === kind);
}

/** CPU time that a process has taken so far, in ticks of 10 ms; NaN where the system does not tell. */
function cpuMs(pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
    return 10 * (Number(fields[11]) + Number(fields[12]));
  } catch {
    return Number.NaN;
  }
}

function report(stack: EdgeStack, values: EdgeSettings, rows: readonly Row[], context: BenchContext): BenchResult {
  const direct = rows[0] as Row;
  const added = rows.slice(1).map((row) => ({
    kind: row.kind,
    requestMs: minus(row.firstMs, direct.firstMs),
    tokenMs: minus(row.tokenMs, direct.tokenMs),
    cpuMsPerTurn: row.cpuMsPerTurn,
  }));
  const ms = (value: number): string => value.toFixed(3);
  const interrupted = context.signal.aborted;
  if (interrupted) context.print("stopped early: what follows was measured until then");
  const columns: readonly Column<(typeof added)[number]>[] = [
    { header: "added by the edge", cell: ({ kind }) => kind, align: "left" },
    { header: "a request, p10 ms", cell: ({ requestMs }) => ms(requestMs.p10) },
    { header: "p50", cell: ({ requestMs }) => ms(requestMs.p50) },
    { header: "p90", cell: ({ requestMs }) => ms(requestMs.p90) },
    { header: "a token, p10 ms", cell: ({ tokenMs }) => ms(tokenMs.p10) },
    { header: "p50", cell: ({ tokenMs }) => ms(tokenMs.p50) },
    { header: "p90", cell: ({ tokenMs }) => ms(tokenMs.p90) },
    { header: "CPU of workerd, ms a turn", cell: ({ cpuMsPerTurn }) => cpuMsPerTurn?.toFixed(2) ?? "" },
  ];
  context.print(
    `workerd ${stack.workerdVersion}; ${values.turns} turns of each kind, ${values.tokens} tokens ${values.gap} ms apart, the first after ${values.first} ms`,
  );
  context.print(
    `straight to the engine: first token p50 ${ms(direct.firstMs.p50)} ms, a token p50 ${ms(direct.tokenMs.p50)} ms`,
  );
  for (const line of renderTable(columns, added)) context.print(line);
  const isMet = added
    .filter(({ kind }) => !isFloor(kind))
    .every(({ requestMs, tokenMs }) => requestMs.p50 <= REQUEST_MS_MAX && tokenMs.p50 <= TOKEN_MS_MAX);
  context.print(
    isMet ? "within the bars" : `over the bars of ${REQUEST_MS_MAX} ms a request and ${TOKEN_MS_MAX} ms a token (p50)`,
  );
  return { ok: true, data: { settings: values, workerd: stack.workerdVersion, interrupted, rows, added, isMet } };
}

function minus(a: Spread, b: Spread): Spread {
  return { p10: a.p10 - b.p10, p50: a.p50 - b.p50, p90: a.p90 - b.p90 };
}

function spreadOf(values: readonly number[]): Spread {
  return { p10: quantile(values, 0.1), p50: quantile(values, 0.5), p90: quantile(values, 0.9) };
}
