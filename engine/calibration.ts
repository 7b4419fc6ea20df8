/** Finds what `quire calibrate` and `quire profile-heads` left beside a model. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { SummaryKind } from "../kernels/contract.ts";
import { locateModel } from "../models/model-files.ts";
import { CALIBRATION_FILE, type Calibration, parseCalibration } from "../models/selection/calibration.ts";
import { HEADS_FILE, type HeadProfile, parseHeadProfile } from "../models/selection/head-profile.ts";
import { policyNamed } from "../models/selection/registry.ts";
import { QuireError } from "../protocol/errors.ts";
import type { EngineLog } from "./settings.ts";

/** Where a file about a model lies: in its folder, or beside its GGUF file. */
export async function pathBeside(model: string, file: string): Promise<string> {
  const { format, path } = await locateModel(model);
  return format === "gguf" ? `${path}.${file}` : join(path, file);
}

/**
 * The calibration of a model; undefined where there is none, or one of no use, which is logged: of another model, or with a policy that scores by
 * summaries that are not among `kinds`.
 */
export async function readCalibration(
  model: string,
  { fingerprint, kinds, log }: { fingerprint: string; kinds: readonly SummaryKind[]; log: EngineLog },
): Promise<Calibration | undefined> {
  return readBeside(model, { file: CALIBRATION_FILE, event: "calibration.ignored", log }, (text) => {
    const calibration = parseCalibration(text, fingerprint);
    const { summary } = policyNamed(calibration.selection);
    if (summary === undefined || kinds.includes(summary)) return calibration;
    const problem = `${calibration.selection} needs ${summary} summaries (--summaries)`;
    throw new QuireError("invalid_request", problem);
  });
}

/** The profile of a model's heads; undefined where there is none, or one of another model, which is logged. */
export function readHeadProfile(
  model: string,
  { log, ...shape }: { fingerprint: string; layerCount: number; kvHeadCount: number; log: EngineLog },
): Promise<HeadProfile | undefined> {
  return readBeside(model, { file: HEADS_FILE, event: "heads.ignored", log }, (text) => parseHeadProfile(text, shape));
}

/** What a file beside a model says; undefined where there is none, or where `parse` refuses it, which is logged. */
async function readBeside<T>(
  model: string,
  { file, event, log }: { file: string; event: string; log: EngineLog },
  parse: (text: string) => T,
): Promise<T | undefined> {
  const path = await pathBeside(model, file);
  const text = await readFile(path, "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof QuireError)) throw error;
    log(event, { path, problem: error.message });
    return undefined;
  }
}
