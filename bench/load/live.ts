/** What a load test shows at a terminal while it runs: a few lines that are written over each second. */
import type { BenchTerminal } from "../bench.ts";
import type { Measures } from "./measures.ts";
import type { LoadSample } from "./watch.ts";

/** Lines that stay where they are. */
export interface LiveView {
  show(samples: readonly LoadSample[], measures: Measures): void;
  /** A line that scrolls by above. */
  note(line: string): void;
  /** Leaves the last state standing. */
  close(): void;
}

const barWidth = 30;
const sparks = "▁▂▃▄▅▆▇█";
const sparkCount = 60;

/** Opens one below what the terminal shows. */
export function openLiveView(terminal: BenchTerminal, durationS: number): LiveView {
  let shown: readonly string[] = [];
  const draw = (lines: readonly string[]): void => {
    const up = shown.length === 0 ? "" : `\u001b[${shown.length}A`;
    const cut = lines.map((line) => `\u001b[2K${line.slice(0, Math.max(20, terminal.columns() - 1))}\n`);
    terminal.write(`${up}${cut.join("")}`);
    shown = lines;
  };
  return {
    show: (samples, measures) => draw(liveLines(samples, measures, durationS)),
    note(line) {
      const kept = shown;
      if (kept.length > 0) terminal.write(`\u001b[${kept.length}A\u001b[0J`);
      terminal.write(`${line}\n`);
      shown = [];
      if (kept.length > 0) draw(kept);
    },
    close() {
      shown = [];
    },
  };
}

/** The lines of a moment. */
export function liveLines(samples: readonly LoadSample[], measures: Measures, durationS: number): string[] {
  const last = samples.at(-1);
  if (last === undefined) return [];
  const { turns, firstTokenMs, betweenDeltasMs } = measures.all.summary();
  const share = Math.min(1, last.atS / durationS);
  const done = "#".repeat(Math.round(share * barWidth)).padEnd(barWidth, ".");
  const perSecond = samples.slice(1).map((sample, i) => sample.turnsCompleted - samples[i]!.turnsCompleted);
  const mebibytes = Object.entries(last.memoryBytes).map(([name, bytes]) => `${name} ${(bytes / 2 ** 20).toFixed(0)}`);
  return [
    `[${done}] ${last.atS.toFixed(0)} of ${durationS.toFixed(0)} s, ${last.sessionsActive} sessions in progress`,
    `turns        ${turns.completed} completed, ${turns.failed} failed, ${measures.refusals} refused, ${measures.aborts} left by clients`,
    `turns/s      ${sparkline(perSecond.slice(-sparkCount))} ${perSecond.at(-1) ?? 0}`,
    `first token  p50 ${ms(firstTokenMs.p50)}  p95 ${ms(firstTokenMs.p95)}  p99 ${ms(firstTokenMs.p99)}   between p50 ${ms(betweenDeltasMs.p50)}  p95 ${ms(betweenDeltasMs.p95)}`,
    ...(mebibytes.length === 0 ? [] : [`memory, MiB  ${mebibytes.join(", ")}`]),
  ];
}

function sparkline(values: readonly number[]): string {
  const most = Math.max(1, ...values);
  return values.map((value) => sparks[Math.round((Math.max(0, value) / most) * (sparks.length - 1))]).join("");
}

function ms(value: number | undefined): string {
  return value === undefined ? "-" : `${value.toFixed(0)} ms`;
}
