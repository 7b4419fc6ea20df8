/** An engine process: device, model, page store, engine and its HTTP interface, opened and closed together. */

import { randomBytes } from "node:crypto";
import type { AddressInfo } from "node:net";
import { basename, resolve } from "node:path";
import type { Device, KvEncoding, KvPoolSpec, MatrixEncoding, SummaryKind } from "../kernels/contract.ts";
import { openDevice } from "../kernels/open.ts";
import type { ModelConfig, ModelRunner } from "../models/contract.ts";
import type { LoadProgress } from "../models/llama-weights.ts";
import { readModelConfig } from "../models/model-files.ts";
import { openModel } from "../models/open.ts";
import { defaultContextTokens, planPool, smallestConfinedPoolBytes, smallestPoolBytes } from "../models/plan-memory.ts";
import { QuireError } from "../protocol/errors.ts";
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { signingKeys } from "../protocol/signature.ts";
import type { PageStore } from "../storage/contract.ts";
import type { DiskCache } from "../storage/disk-cache.ts";
import type { StoredEncoding } from "../storage/geometry.ts";
import { openCachedStore, openStore } from "../storage/open.ts";
import { readCalibration, readHeadProfile } from "./calibration.ts";
import { checkStore } from "./check-store.ts";
import type { EngineParts } from "./engine-parts.ts";
import { assertFits } from "./fit-device.ts";
import { engineHttpServer } from "./http/http-server.ts";
import { startRegistration } from "./http/registration.ts";
import { sessionCalls } from "./http/session-calls.ts";
import { type OpenedEngine, openEngine } from "./open.ts";
import { poolForm } from "./pool-form.ts";
import { ENGINE_DEFAULTS, type EngineLog, type EngineSettings, systemClock } from "./settings.ts";
import { type WarmUpProgress, warmUp } from "./warm-up.ts";

/** Settings of an engine process; `quire serve` has a flag for most of them. */
export interface EngineServerOptions {
  host: string;
  /** 0: any free port. */
  port: number;
  /** A HF model folder or a GGUF file. */
  modelFolder: string;
  /** Default: its name. */
  modelId?: string | undefined;
  /** `fs:PATH`, `s3://...` or `memory:`. */
  storeUrl: string;
  /** A tier on the local disk in front of the store; default none. */
  diskCache?: { folder: string; bytesMax: number } | undefined;
  /** Credentials of the store, as `storage/open.ts` reads them. */
  env: Record<string, string | undefined>;
  /** `auto`: a hardware GPU that passes a check, else the CPU. */
  device: "auto" | "wasm" | "webgpu" | "reference";
  /** Hears which device `auto` took and why, in one line. */
  onDeviceChoice?: ((line: string) => void) | undefined;
  threads?: number | undefined;
  weightEncoding: MatrixEncoding;
  kvEncoding: KvEncoding;
  /** How pages are stored, and what sealed ones are rounded to: int8 or int4 of an int8 pool, f32 or f16 of an f32 pool. Default: as in the pool. */
  pageEncoding?: StoredEncoding | undefined;
  summaryKinds: readonly SummaryKind[];
  poolBytes: number;
  /** Memory the device may take for weights, steps and pool together; default: what it can. */
  memoryBytesMax?: number | undefined;
  /** Default: what the model allows, or `defaultContextTokens` where the pool is too small for that. */
  contextTokensMax?: number | undefined;
  /** Secret shared with the edge, at least `LIMITS.engineKeyLengthMin` characters; undefined: none is asked for (loopback, no edge). */
  engineKey?: string | undefined;
  /** Base URL of the edge to register with. */
  edgeUrl?: string | undefined;
  /** URL at which the edge reaches this engine, if not its own address. */
  publicUrl?: string | undefined;
  settings?: Partial<EngineSettings>;
  /** Called once, when the edge lets this engine go; it ends with {@link EngineServer.stop}. */
  onRelease?: (() => void) | undefined;
  /** Called once, when the device is gone: the process is to end at once, and the edge goes on elsewhere. Default: turns fail. */
  onDeviceLost?: EngineParts["onDeviceLost"];
  /** Called while a GPU compiles its kernels; never on a CPU. */
  onKernelsCompiled?: ((compiled: KernelsCompiled) => void) | undefined;
  /** Called often while weights are loaded. */
  onLoadProgress?: ((progress: LoadProgress) => void) | undefined;
  log: EngineLog;
}

/** How far a GPU is with its kernels, and the milliseconds it took so far. */
export interface KernelsCompiled extends WarmUpProgress {
  kernelCount: number;
  ms: number;
}

/** A listening engine. */
export interface EngineServer {
  readonly url: string;
  readonly engineId: string;
  readonly modelId: string;
  readonly opened: OpenedEngine;
  /** One line for people: device, model, pool. */
  readonly description: string;
  /** Drains for at most `graceMs`, persists, closes everything. Until then it answers: new requests are refused, calls about running ones are heard. */
  stop(graceMs: number): Promise<void>;
}

/** @throws {QuireError} one line for a model, pool or store that cannot be opened, or a store that refuses; {Error} with `code` EADDRINUSE for a taken port. */
export async function startEngineServer(options: EngineServerOptions): Promise<EngineServer> {
  assertKept(options);
  const parts = await openParts(options);
  try {
    return await serve(options, parts);
  } catch (error) {
    await parts.store.close();
    await parts.device.close();
    throw error;
  }
}

function isStrong(secret: string): boolean {
  const keys = signingKeys(secret);
  return keys.length > 0 && keys.every((key) => key.length >= LIMITS.engineKeyLengthMin);
}

/** Whoever can reach an engine without a key can read every tenant's pages with it. */
function assertKept({ engineKey, edgeUrl, host }: EngineServerOptions): void {
  if (engineKey !== undefined && !isStrong(engineKey)) {
    const message = `the engine's key has fewer than ${LIMITS.engineKeyLengthMin} characters`;
    throw new QuireError("invalid_request", message, { param: "engineKey" });
  }
  if (engineKey !== undefined) return;
  const isLoopback = host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
  const why = edgeUrl !== undefined ? "to register with an edge" : `to listen on ${host}`;
  if (isLoopback && edgeUrl === undefined) return;
  throw new QuireError("invalid_request", `the engine needs a key ${why}: QUIRE_ENGINE_KEY`, { param: "engineKey" });
}

/** A device that knows, before a model is loaded, which pools it cannot have. */
interface PoolLimited extends Device {
  assertPoolFits?(spec: KvPoolSpec): void;
}

interface Parts {
  device: Device;
  /** The device's, and what sealed pages are rounded to: KV of one rounding never passes for KV of another. */
  numericsId: string;
  runner: ModelRunner;
  store: PageStore;
  diskCache: DiskCache | undefined;
  settings: EngineSettings;
  tokenCapacity: number;
}

async function openPages({ storeUrl, env, diskCache }: EngineServerOptions) {
  if (diskCache === undefined) return { store: await openStore(storeUrl, env), cache: undefined };
  return await openCachedStore(storeUrl, env, { ...diskCache, clock: systemClock });
}

async function openParts(options: EngineServerOptions): Promise<Parts> {
  const planned = planParts(options, await readModelConfig(options.modelFolder));
  const { store, cache: diskCache } = await openPages(options);
  try {
    await checkStore(store, options.log);
    return { ...(await openCompute(options, planned)), store, diskCache, tokenCapacity: planned.plan.tokenCapacity };
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** What follows from options and model alone. @throws {QuireError} for a pool that is too small. */
function planParts(options: EngineServerOptions, config: ModelConfig) {
  const form = poolForm(options.kvEncoding, options.pageEncoding);
  const { kvEncoding: encoding, summaryKinds, poolBytes } = options;
  const rowsMax = options.settings?.stepRowsMax ?? ENGINE_DEFAULTS.stepRowsMax;
  const fitting = defaultContextTokens({ config, encoding, summaryKinds, poolBytes, rowsMax });
  const contextTokensMax = Math.min(options.contextTokensMax ?? fitting, config.contextTokensMax);
  const settings: EngineSettings = {
    ...ENGINE_DEFAULTS,
    engineId: `engine-${randomBytes(6).toString("hex")}`,
    modelId: options.modelId ?? basename(resolve(options.modelFolder)),
    contextTokensMax,
    ...options.settings,
  };
  const hostBytes = settings.hostPoolBytes;
  const asked = { config, encoding, summaryKinds, contextTokens: contextTokensMax, rowsMax, hostBytes };
  const plan = planPool({ ...asked, poolBytes, runningMax: settings.runningMax });
  settings.runningMax = plan.runningMax;
  const smallest = plan.tokenCapacity < contextTokensMax ? smallestConfinedPoolBytes : smallestPoolBytes;
  const kv = {
    ...form,
    summaryKinds,
    blockCount: plan.blockCount,
    openSlotCount: plan.openSlotCount,
    summarySlotCount: plan.summarySlotCount,
  };
  // Every running sequence has a row that is sampled; guesses of speculation have what is beside them.
  const sampledMax = settings.runningMax + LIMITS.draftTokensMax;
  return { config, settings, plan, poolBytesMin: smallest(asked), kv, rowsMax, sampledMax };
}

/** Device and model; nothing stays open where one cannot be had. */
async function openCompute(
  options: EngineServerOptions,
  { config, settings, plan, poolBytesMin, kv, rowsMax, sampledMax }: ReturnType<typeof planParts>,
): Promise<Pick<Parts, "device" | "numericsId" | "runner" | "settings">> {
  const { layerCount, kvHeadCount, headDim } = config;
  const { log, modelFolder, summaryKinds, weightEncoding } = options;
  const assertSuits = (device: Device & PoolLimited) => {
    const load = { config, weightEncoding, rowsMax, sampledMax, poolBytes: plan.bytes, poolBytesMin };
    assertFits(load, device.report.memoryBytesMax);
    device.assertPoolFits?.({ ...kv, layerCount, kvHeadCount, headDim });
  };
  const device = await openDevice({
    kind: options.device,
    assertSuits,
    ...(options.threads === undefined ? {} : { threads: options.threads }),
    ...(options.memoryBytesMax === undefined ? {} : { memoryBytesMax: options.memoryBytesMax }),
    ...(options.onDeviceChoice === undefined ? {} : { onChoice: options.onDeviceChoice }),
  });
  try {
    assertSuits(device);
    const runner = await openModel({
      folder: modelFolder,
      device,
      encoding: weightEncoding,
      ...(options.onLoadProgress === undefined ? {} : { onProgress: options.onLoadProgress }),
      kv,
      rowsMax,
      sampledMax,
    });
    await device.allocated?.();
    await compileKernels(device, runner, options);
    const measured = { fingerprint: runner.fingerprint, log };
    const calibration = await readCalibration(modelFolder, { ...measured, kinds: summaryKinds });
    const heads = await readHeadProfile(modelFolder, { ...measured, layerCount, kvHeadCount });
    const beside = { ...(calibration === undefined ? {} : { calibration }), ...(heads === undefined ? {} : { heads }) };
    const numericsId = [device.numericsId, kv.rounding].filter((part) => part !== undefined).join("-");
    return { device, numericsId, runner, settings: { ...settings, ...beside } };
  } catch (error) {
    await device.close();
    throw error;
  }
}

/** Before the first turn needs them; a CPU's are compiled when its module is loaded. */
async function compileKernels(
  device: Device & { kernelCount?: number },
  runner: ModelRunner,
  { onKernelsCompiled, log }: EngineServerOptions,
): Promise<void> {
  if (device.kind !== "webgpu") return;
  const startMs = systemClock.nowMs();
  const compiled = (progress: WarmUpProgress): KernelsCompiled => {
    return { ...progress, kernelCount: device.kernelCount ?? 0, ms: systemClock.nowMs() - startMs };
  };
  await warmUp(runner, (progress) => {
    onKernelsCompiled?.(compiled(progress));
    if (progress.stepsDone === progress.stepCount) log("kernels_compiled", { ...compiled(progress) });
  });
}

async function serve(options: EngineServerOptions, parts: Parts): Promise<EngineServer> {
  const { device, numericsId, runner, store, diskCache, settings } = parts;
  const { log, onDeviceLost } = options;
  const made = { runner, numericsId, store, diskCache, settings, clock: systemClock, log, onDeviceLost };
  const opened = openEngine(made);
  const http = engineHttpServer({
    engine: opened.engine,
    engineId: settings.engineId,
    numericsId,
    bounds: {
      modelId: settings.modelId,
      vocabularySize: runner.config.vocabularySize,
      contextTokensMax: settings.contextTokensMax,
    },
    key: options.engineKey,
    log,
    sessions: sessionCalls(opened, store, { settings, clock: systemClock }),
  });
  try {
    await new Promise<void>((done, failed) => {
      http.once("error", failed);
      http.listen(options.port, options.host, done);
    });
  } catch (error) {
    // Its loop runs already, and holds the pool.
    await opened.engine.stop(0);
    throw error;
  }
  const { port } = http.address() as AddressInfo;
  const url = `http://${options.host.includes(":") ? `[${options.host}]` : options.host}:${port}`;
  const beat = (): EngineHeartbeat => heartbeat(opened, parts, options.publicUrl ?? url);
  const registration =
    options.edgeUrl === undefined
      ? undefined
      : startRegistration({
          edgeUrl: options.edgeUrl,
          key: options.engineKey ?? "",
          beat,
          onRelease: options.onRelease,
          onAway: () => opened.evictIdle(),
          log,
        });
  return {
    url,
    engineId: settings.engineId,
    modelId: settings.modelId,
    opened,
    description: `${device.report.description}; ${settings.modelId}, ${options.weightEncoding} weights, ${options.kvEncoding} KV${options.pageEncoding === undefined ? "" : ` (${options.pageEncoding} pages)`}; pool for ${parts.tokenCapacity} tokens, ${settings.hostPoolBytes / 2 ** 20} MiB behind it; pages in ${store.name}`,
    async stop(graceMs) {
      // From here on it says that it drains. The edge is told at once, and hears of it to the end: for one that falls silent it would take running turns away.
      const drained = opened.engine.stop(graceMs);
      await Promise.all([drained, registration?.beatNow()]);
      registration?.stop();
      http.close();
      http.closeAllConnections();
      await store.close();
      await device.close();
    },
  };
}

function heartbeat(opened: OpenedEngine, parts: Parts, url: string): EngineHeartbeat {
  const { settings, device, numericsId, runner } = parts;
  const { status } = opened.engine;
  const { typicalRowMs } = status.cost;
  return {
    engineId: settings.engineId,
    url,
    model: settings.modelId,
    modelFingerprint: runner.fingerprint,
    contextTokensMax: settings.contextTokensMax,
    device: device.kind,
    numericsId,
    runningCount: status.runningCount,
    queuedCount: status.queuedCount,
    queueMax: settings.queueMax,
    freeBlockCount: status.freeBlockCount,
    blockCount: status.blockCount,
    draining: status.draining,
    residentPrefixes: opened.residentPrefixes(),
    ...(typicalRowMs === undefined ? {} : { prefillMsPerToken: typicalRowMs }),
    kvBytesPerToken: opened.kvBytesPerToken,
    waitingTokens: opened.engine.waitingTokens,
  };
}
