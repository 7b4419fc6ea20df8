/** The head of the page, of a model that was judged. */
import { type Machine, machineLine } from "../machine.ts";
import type { Figures } from "./figures.ts";
import type { EvalValues } from "./flags.ts";
import { escapeText } from "./line-plot.ts";
import { tokens } from "./page-words.ts";
import type { EvalRun } from "./run.ts";

/** What the head is written from. */
export interface IntroContext {
  values: EvalValues;
  model: EvalRun["model"];
  machine: Machine;
  interrupted: boolean;
}

/** What the bounds are that selections lie between. */
export const BOUNDS_NOTE = `<em>oracle</em> knows the attention weights and takes the best pages; <em>random</em> takes any.
A selection is worth its bytes when it is near the former and far from the latter.`;

/** A paragraph that says so, if a run was stopped. */
export function stoppedNote(interrupted: boolean): string {
  return interrupted ? '<p class="warn">The run was stopped before its end: run it again to go on.</p>' : "";
}

/** What a model was judged on: model, texts, machine. */
export function modelIntro(
  { fidelity, tasks }: Figures,
  { values, model, machine, interrupted }: IntroContext,
): string {
  const questions =
    tasks.length === 0 ? "" : ` Questions: ${Math.max(...tasks.map(({ cases }) => cases))} of each kind and length.`;
  const text = values.text === undefined ? "held-out books" : values.text;
  const windows = fidelity[0]?.mass.count ?? 0;
  return `${stoppedNote(interrupted)}
<p>${escapeText(`${model.id}: ${model.parameters}; weights ${values.weights}, KV ${values.kv}; ${model.device}; numerics ${model.numericsId}.`)}<br>
${escapeText(`Texts: ${windows} pieces of ${text}, ${values.tokens} tokens each behind every context, read token by token.${questions}`)}<br>
${escapeText(machineLine(machine))}${beyondTraining(values)}</p>
<p>A <em>selection</em> reads part of the KV cache in each step. This page shows, for the same bytes, how much of what full attention sees
each one keeps, what the model then makes of real text, and whether it still answers questions. ${BOUNDS_NOTE}</p>`;
}

/** Says which of the lengths the model was not trained for. */
function beyondTraining({ contexts, lengths, continued, trained }: EvalValues): string {
  const beyond = [...new Set([...contexts, ...lengths, ...continued])]
    .filter((length) => length > trained)
    .sort((a, b) => a - b);
  if (beyond.length === 0) return "";
  return `<br>\nBeyond the ${tokens(trained)} tokens that the model was trained on, and to be read apart: ${beyond.map(tokens).join(", ")}.`;
}
