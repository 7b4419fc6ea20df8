/** The head of the page, of traces. */
import { type Machine, machineLine } from "../../machine.ts";
import { escapeText } from "../line-plot.ts";
import { BOUNDS_NOTE, stoppedNote } from "../page-intro.ts";
import { percent } from "../page-words.ts";
import type { TraceNote, TraceRun } from "./run-traces.ts";

/** What a trace does not hold, in words. */
export const UNTOLD_NOTE =
  "A trace holds no model. What the model would have said, perplexity, answers, long generations and the time of a step cannot be told from it and are left out.";

/** What was judged: files, shapes, machine; and what they cannot tell. */
export function traceIntro(
  { traces, model, interrupted }: TraceRun,
  { kv, machine }: { kv: string; machine: Machine },
): string {
  const intervals =
    traces.length === 1
      ? "Intervals are of a bootstrap over the rows of one text: they do not know other texts."
      : "Intervals are over files, one text each.";
  const lines = [
    `${model.id}: ${model.parameters}, as other systems captured them; KV ${kv}; ${model.device}; numerics ${model.numericsId}.`,
    ...traces.map(traceLine),
    ...(model.layers.every((number, index) => number === index)
      ? []
      : [`Layers 0 to ${model.layers.length - 1} of this page are layers ${model.layers.join(", ")} of the model.`]),
    machineLine(machine),
  ];
  return `${stoppedNote(interrupted)}
<p>${lines.map(escapeText).join("<br>\n")}</p>
<p>A <em>selection</em> reads part of the KV cache in each step. This page shows, for the same bytes, how much of what full attention sees
each one keeps, on the queries of full attention. ${BOUNDS_NOTE}</p>
<p>${escapeText(`${UNTOLD_NOTE} ${intervals}`)}</p>`;
}

function traceLine({ file, source, tokenCount, rowCount, outputDistance }: TraceNote): string {
  const from = source === undefined ? "" : ` (${source})`;
  const check =
    outputDistance === undefined
      ? "it does not say what attention gave there"
      : `what attention gave there is met within ${percent(outputDistance.mean)} (mean; of a layer at a row at most ${percent(outputDistance.largest)})`;
  return `${file}${from}: ${rowCount} rows over ${tokenCount} tokens; ${check}.`;
}
