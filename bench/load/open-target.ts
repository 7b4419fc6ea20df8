/** From flags to a target: a running one, or one of this run's own. */
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type EngineFlagName, engineFlags } from "../../cli/engine-flags.ts";
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { type Model, Quire, type SendOptions } from "../../sdk/index.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import type { BenchContext } from "../bench.ts";
import { edgeTarget } from "./edge-target.ts";
import { engineTarget } from "./engine-target.ts";
import { type LoadValues, verifiedCount } from "./flags.ts";
import { type OwnStack, startOwnStack } from "./own-stack.ts";
import { REFERENCE_TENANT, type Target } from "./target.ts";

/** A target that is there, until it is closed. */
export interface OpenTarget {
  target: Target;
  model: string;
  /** What stands behind a target of the run's own. */
  own?: OwnStack;
  close(): Promise<void>;
}

interface Place {
  url: string;
  key: string | undefined;
  own: OwnStack | undefined;
}

/**
 * Opens the target. Undefined when the user stopped the run before it was there.
 * @throws {UsageError} for a target that cannot be reached or started.
 */
export async function openTarget(values: LoadValues, context: BenchContext): Promise<OpenTarget | undefined> {
  const place = await findPlace(values, context);
  if (place === undefined) return undefined;
  const close = async (): Promise<void> => place.own?.stop();
  try {
    const opened = values.target === "edge" ? await openEdge(values, place) : await openEngine(values, place);
    const { own } = place;
    return { ...opened, close, ...(own && { own }) };
  } catch (error) {
    await close();
    throw error;
  }
}

async function findPlace(values: LoadValues, context: BenchContext): Promise<Place | undefined> {
  const { url, key, target: kind } = values;
  if (url !== undefined) return { url, key, own: undefined };
  context.progress(kind === "edge" ? "starting edge and engine" : "starting an engine");
  const engineArgs = (Object.keys(engineFlags) as EngineFlagName[]).flatMap((name) => {
    const value = values[name];
    return value === undefined ? [] : [`--${name}=${value}`];
  });
  const own = await startOwnStack({
    ...{ kind, engineArgs, context, model: values.model },
    isInspected: values.collect > 0,
    ...{ engineCount: values.engines, spareCount: values.spare, tenantCount: values.tenants.length },
  });
  return own === undefined ? undefined : { url: own.url, key: own.key, own };
}

async function openEdge(values: LoadValues, { url, key = "", own }: Place): Promise<Omit<OpenTarget, "close" | "own">> {
  const turnMs = values["turn-timeout"] * 1000;
  const open = (apiKey: string): Quire =>
    new Quire({ baseUrl: url, apiKey, maxRetries: values.retries, timeoutMs: turnMs });
  const clients = (own?.tenantKeys ?? [key]).map(open);
  const reference = own === undefined ? clients[0]! : open(own.referenceKey);
  const quireOf = (tenant: number): Quire =>
    tenant === REFERENCE_TENANT ? reference : clients[tenant % clients.length]!;
  const model = (await listModels(clients[0]!, url))[0]?.id;
  if (model === undefined) throw new UsageError(`the edge at ${url} serves no model now`);
  const what = own
    ? `the edge in a bare workerd, ${values.engines} engine(s) with one file store, and this load generator, all on this machine`
    : `the edge at ${url}`;
  const description = `${model} through the SDK, ${what}`;
  return { model, target: edgeTarget({ quireOf, model, send: sendOptions(values), description }) };
}

async function listModels(quire: Quire, url: string): Promise<Model[]> {
  try {
    return await quire.models();
  } catch (error) {
    throw new UsageError(`the edge at ${url} does not list its models: ${(error as Error).message}`);
  }
}

function sendOptions(values: LoadValues): SendOptions & { maxTokens: number } {
  const selection: NonNullable<SendOptions["selection"]> = {};
  if (values.policy !== undefined) selection.policy = values.policy;
  if (values.budget !== undefined) selection.budgetTokens = values.budget;
  if (values.exact !== undefined || verifiedCount(values) > 0) selection.exact = isExact(values);
  const isChosen = Object.keys(selection).length > 0;
  return { temperature: 0, maxTokens: values["max-tokens"], ...(isChosen && { selection }) };
}

async function openEngine(values: LoadValues, { url, key, own }: Place): Promise<Omit<OpenTarget, "close" | "own">> {
  const folder = await openModelFolder(values.model);
  const read = async (name: string): Promise<unknown> => JSON.parse(await readFile(join(folder.path, name), "utf8"));
  const words = openTokenizer({
    tokenizerJson: await read("tokenizer.json"),
    tokenizerConfig: await read("tokenizer_config.json"),
  });
  const where = own
    ? "quire serve with a file store, and this load generator, on this machine"
    : `the engine at ${url}`;
  const target = engineTarget({
    url,
    engineId: await engineIdOf(url),
    engineKey: key,
    // A name of its own: nothing that another run has stored is reused.
    namespaces: Array.from({ length: values.tenants.length }, () => randomBytes(32).toString("hex")),
    referenceNamespace: randomBytes(32).toString("hex"),
    model: folder.modelId,
    words: { ...words, stopTokens: stopTokens(await read("config.json")) },
    maxTokens: values["max-tokens"],
    selection: {
      policy: values.policy ?? "quest",
      budgetTokens: values.budget ?? 2048,
      exact: isExact(values),
    },
    firstTokenMsMax: values["first-token-max"],
    description: `${folder.modelId} by token ids, without an edge, ${where}`,
  });
  return { model: folder.modelId, target };
}

/** Texts that are to be compared are asked for exactly, if nothing else is said. */
function isExact(values: LoadValues): boolean {
  return values.exact === undefined ? verifiedCount(values) > 0 : values.exact === "true";
}

async function engineIdOf(url: string): Promise<string> {
  try {
    const answer = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(LIMITS.statusMsMax) });
    return String(((await answer.json()) as { engine?: unknown }).engine);
  } catch (error) {
    throw new UsageError(`the engine at ${url} does not say who it is: ${(error as Error).message}`);
  }
}

function stopTokens(config: unknown): number[] {
  const { eos_token_id: eos } = config as { eos_token_id?: number | number[] };
  return eos === undefined ? [] : [eos].flat();
}
