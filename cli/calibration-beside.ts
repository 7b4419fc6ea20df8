/** What lies beside a model that nobody has opened. */
import { readFile } from "node:fs/promises";
import { pathBeside } from "../engine/calibration.ts";
import { CALIBRATION_FILE, type Calibration, parseCalibration } from "../models/selection/calibration.ts";

/**
 * The calibration beside a model, undefined where there is none. That it is of these weights in their encoding is not checked: only who reads the
 * weights knows.
 * @throws {QuireError} `invalid_request`, one line, for a file that is none.
 */
export async function calibrationBeside(model: string): Promise<Calibration | undefined> {
  const text = await readFile(await pathBeside(model, CALIBRATION_FILE), "utf8").catch(() => undefined);
  return text === undefined ? undefined : parseCalibration(text);
}
