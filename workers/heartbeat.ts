/** POST /v1/engines/heartbeat: checks what an engine says of itself. */
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { Fields, invalid } from "./fields.ts";

const COUNT = { min: 0, max: Number.MAX_SAFE_INTEGER, integer: true };

/**
 * Reads a heartbeat. Fields that this edge does not know are left out: engines may be newer.
 * @throws {QuireError} `invalid_request` naming the field.
 */
export function readHeartbeat(body: Record<string, unknown>): EngineHeartbeat {
  const fields = new Fields(body);
  const text = (name: string, pattern: RegExp): string => {
    const value = fields.string(name);
    if (value === undefined || !pattern.test(value)) throw invalid(name, `Invalid '${name}' in an engine's heartbeat.`);
    return value;
  };
  const count = (name: string): number => {
    const value = fields.number(name, COUNT);
    if (value === undefined) throw invalid(name, `Missing '${name}' in an engine's heartbeat.`);
    return value;
  };
  return {
    engineId: text("engineId", /^[\x21-\x7e]{1,128}$/),
    url: text("url", /^https?:\/\/[^\s/]+(\/[^\s]*)?$/).replace(/\/+$/, ""),
    // The id is a folder in the bucket.
    model: text("model", /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/),
    modelFingerprint: text("modelFingerprint", /^.{0,256}$/),
    contextTokensMax: count("contextTokensMax"),
    device: text("device", /^.{0,256}$/),
    numericsId: text("numericsId", /^.{0,256}$/),
    runningCount: count("runningCount"),
    queuedCount: count("queuedCount"),
    queueMax: count("queueMax"),
    freeBlockCount: count("freeBlockCount"),
    blockCount: count("blockCount"),
    draining: fields.boolean("draining") ?? false,
    residentPrefixes: fields.string("residentPrefixes"),
    prefillMsPerToken: fields.number("prefillMsPerToken", { min: 0, max: 60_000 }),
    waitingTokens: fields.number("waitingTokens", COUNT),
    kvBytesPerToken: fields.number("kvBytesPerToken", { min: 0, max: 1 << 30 }),
  };
}
