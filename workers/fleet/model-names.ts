/** Which models this isolate was told of a moment ago, so that not every turn asks the fleet twice. */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { quoted } from "../fields.ts";
import { RecentMap } from "../recent-map.ts";

/**
 * Ids by the names that were asked for. Only what is there is remembered: a turn for a model that has just gone is told so when it gets no
 * engine. One per isolate: which models are served is the same for everybody, so sharing tells nothing.
 */
export const isolateModelNames = new RecentMap<string>({
  countMax: LIMITS.modelNameCountMax,
  ageMsMax: LIMITS.modelNameMsMax,
  now: () => Date.now(),
});

/** The error for a model that no engine has served. */
export function unknownModel(name: string): QuireError {
  const message = `The model '${quoted(name)}' does not exist or you do not have access to it.`;
  return new QuireError("model_not_found", message, { param: "model" });
}
