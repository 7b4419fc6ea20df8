/** `npm run bench -- guard`: what the edge's keys, limits and signatures add to a request, in a bare workerd. */
import { createHash } from "node:crypto";
import { Agent, request } from "node:http";
import { fileURLToPath } from "node:url";
import { parseInteger } from "../cli/flags.ts";
import { LIMITS } from "../protocol/limits.ts";
import { type BenchContext, type BenchResult, defineBench, unlessStopped } from "./bench.ts";
import { quantile } from "./quantile.ts";
import { renderTable } from "./table.ts";
import { startWorkerd } from "./workerd.ts";
import { workerdConfig } from "./workerd-config.ts";

const flags = {
  requests: {
    help: "measured requests of each kind, in turns",
    placeholder: "COUNT",
    fallback: "2000",
    parse: parseInteger({ min: 10, max: 1_000_000 }),
  },
  keys: {
    help: "keys in the secret table",
    placeholder: "COUNT",
    fallback: "16",
    parse: parseInteger({ min: 1, max: LIMITS.keyTableCountMax }),
  },
} as const;

/** Bars of the whole edge, per request: what is left for the rest of it is what the guards do not take. */
const addedMsMax = 1.5;

interface Kind {
  name: string;
  path: string;
  bodyBytes: number;
}

const kinds: readonly Kind[] = [
  { name: "nothing", path: "/nothing", bodyBytes: 2_000 },
  { name: "body read and parsed", path: "/body", bodyBytes: 2_000 },
  { name: "key", path: "/key", bodyBytes: 2_000 },
  { name: "key, place, body, settled", path: "/turn", bodyBytes: 2_000 },
  { name: "signature of 4 KB", path: "/sign", bodyBytes: 4_000 },
  { name: "nothing, 512 KB", path: "/nothing", bodyBytes: 512_000 },
  { name: "signature of 512 KB", path: "/sign", bodyBytes: 512_000 },
];

/** What a kind is compared with: the same bytes, and nothing done. */
const isLarge = (kind: Kind) => kind.bodyBytes > 100_000;
const baseOf = (kind: Kind) => (isLarge(kind) ? "nothing, 512 KB" : "nothing");

const config = workerdConfig({
  texts: {
    QUIRE_API_KEYS: { file: "keys.json" },
    QUIRE_TENANT_SALT: "salt",
    QUIRE_LIMITS: { file: "limits.json" },
  },
  classes: ["TenantLimiter", "KeyRing"],
});

/** The benchmark. */
export const guardBench = defineBench({
  summary:
    "Times requests to the parts of the edge that keep it: reading the body, finding the key, the place in the tenant's limits (one\n" +
    "Durable Object, asked while the body is read, told at the end) and the signature for the engine. One connection, one request\n" +
    "at a time, kinds in turns; 'added' is the difference to a request of the same size for which nothing is done. A busy machine only ever\n" +
    "makes it slower: there the fastest tenth (p10) tells more than the median.",
  flags,
  run: (values, context) => measure(values.requests, values.keys, context),
});

interface Row {
  name: string;
  p10Ms: number;
  p50Ms: number;
  p90Ms: number;
  addedP10Ms: number;
  addedP50Ms: number;
}

async function measure(requestCount: number, keyCount: number, context: BenchContext): Promise<BenchResult> {
  const workerd = await startWorkerd({
    entry: fileURLToPath(new URL("../test/workers/guard-worker.ts", import.meta.url)),
    config,
    files: { "keys.json": keyTable(keyCount), "limits.json": limits },
    folders: ["disk"],
  });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  try {
    const times = new Map<string, number[]>(kinds.map(({ name }) => [name, []]));
    // Large bodies behind the small ones: they leave garbage behind.
    for (const group of [kinds.filter((kind) => !isLarge(kind)), kinds.filter(isLarge)]) {
      // The first tenth warms connections, compilers and objects up.
      for (let round = -Math.ceil(requestCount / 10); round < requestCount && !context.signal.aborted; round++) {
        for (const kind of group) {
          const asked = timeRequest(workerd.url + kind.path, kind.bodyBytes, agent);
          const ms = await unlessStopped(asked, context.signal);
          if (ms === undefined) break;
          if (round >= 0) times.get(kind.name)?.push(ms);
        }
      }
    }
    const rows = kinds.map((kind) => rowOf(kind, times));
    const added = (name: string) => rows.find((row) => row.name === name)?.addedP10Ms ?? Number.NaN;
    const wholeMs = added("key, place, body, settled") + added("signature of 4 KB");
    report(
      `workerd ${workerd.version}, ${keyCount} keys, ${requestCount} requests of each kind`,
      rows,
      wholeMs,
      context,
    );
    return { ok: !context.signal.aborted, data: { keyCount, requestCount, workerd: workerd.version, rows, wholeMs } };
  } finally {
    agent.destroy();
    await workerd.close();
  }
}

function rowOf(kind: Kind, times: ReadonlyMap<string, readonly number[]>): Row {
  const at = (name: string, share: number) => quantile(times.get(name) ?? [], share);
  const [p10Ms, p50Ms, p90Ms] = [at(kind.name, 0.1), at(kind.name, 0.5), at(kind.name, 0.9)];
  const base = baseOf(kind);
  return { name: kind.name, p10Ms, p50Ms, p90Ms, addedP10Ms: p10Ms - at(base, 0.1), addedP50Ms: p50Ms - at(base, 0.5) };
}

function report(head: string, rows: readonly Row[], wholeMs: number, context: BenchContext): void {
  const ms = (header: string, value: (row: Row) => number) => ({ header, cell: (row: Row) => value(row).toFixed(3) });
  const columns = [
    { header: "what", cell: (row: Row) => row.name, align: "left" },
    ms("p10 ms", (row) => row.p10Ms),
    ms("p50 ms", (row) => row.p50Ms),
    ms("p90 ms", (row) => row.p90Ms),
    ms("added, p10 ms", (row) => row.addedP10Ms),
    ms("added, p50 ms", (row) => row.addedP50Ms),
  ] as const;
  context.print(head);
  for (const line of renderTable(columns, rows)) context.print(line);
  context.print(`a turn's guards add ${wholeMs.toFixed(3)} ms (p10); the bar of the whole edge is ${addedMsMax} ms`);
}

const key = "qk-0";
const limits = JSON.stringify({
  requests_per_minute: LIMITS.requestsPerMinuteMax,
  tokens_per_minute: LIMITS.tokensPerMinuteMax,
});

function keyTable(count: number): string {
  const hash = (index: number) => createHash("sha256").update(`qk-${index}`).digest("hex");
  return JSON.stringify(
    Object.fromEntries(Array.from({ length: count }, (_, index) => [hash(index), { tenant: "bench" }])),
  );
}

/** fetch would cost as much as what is measured. */
function timeRequest(url: string, bodyBytes: number, agent: Agent): Promise<number> {
  const body = JSON.stringify({ text: "a".repeat(bodyBytes) });
  const headers = { authorization: `Bearer ${key}`, "content-length": body.length };
  const beginMs = performance.now();
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: "POST", agent, headers }, (answer) => {
      answer.resume().once("end", () => {
        if (answer.statusCode === 200) resolve(performance.now() - beginMs);
        else reject(new Error(`${url} answered ${answer.statusCode}`));
      });
    });
    sent.once("error", reject).end(body);
  });
}
