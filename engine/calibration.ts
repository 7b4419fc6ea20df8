/** Finds what `quire calibrate` left beside a model. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { SummaryKind } from "../kernels/contract.ts";
import { locateModel } from "../models/model-files.ts";
import { CALIBRATION_FILE, type Calibration, parseCalibration } from "../models/selection/calibration.ts";
import { policyNamed } from "../models/selection/registry.ts";
import { QuireError } from "../protocol/errors.ts";
import type { EngineLog } from "./settings.ts";

/** Where a model's calibration lies: in its folder, or beside its GGUF file. */
export async function calibrationPath(model: string): Promise<string> {
  const { format, path } = await locateModel(model);
  return format === "gguf" ? `${path}.${CALIBRATION_FILE}` : join(path, CALIBRATION_FILE);
}

/**
 * The calibration of a model; undefined where there is none, or one of no use, which is logged: of another model, or with a policy that scores by
 * summaries that are not among `kinds`.
 */
export async function readCalibration(
  model: string,
  { fingerprint, kinds, log }: { fingerprint: string; kinds: readonly SummaryKind[]; log: EngineLog },
): Promise<Calibration | undefined> {
  const path = await calibrationPath(model);
  const text = await readFile(path, "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    const calibration = parseCalibration(text, fingerprint);
    const { summary } = policyNamed(calibration.selection);
    if (summary === undefined || kinds.includes(summary)) return calibration;
    log("calibration.ignored", { path, problem: `${calibration.selection} needs ${summary} summaries (--summaries)` });
    return undefined;
  } catch (error) {
    if (!(error instanceof QuireError)) throw error;
    log("calibration.ignored", { path, problem: error.message });
    return undefined;
  }
}
