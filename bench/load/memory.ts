/** Resident memory of the processes of a run, sampled while it lasts, and whether it is flat. */
import { readFile } from "node:fs/promises";

/** A process that is measured. */
export interface ProcessAtWork {
  /** Names what it does: `engine 1`, `edge`; one that was killed and started again has the same name and another pid. */
  name: string;
  pid: number;
}

/** What became of one process's memory. */
export interface MemoryTrend {
  name: string;
  pid: number;
  fromS: number;
  toS: number;
  peakBytes: number;
  /**
   * The lowest of the first and the last third of its life behind the warm-up, and last over first less 1: a heap grows until it is collected, and a
   * median tells where in that a third lies. Absent: it did not live that long.
   */
  firstThirdBytes?: number;
  lastThirdBytes?: number;
  growth?: number;
}

/** Of a run, what is left to filling pools and compiling. */
const WARM_UP_SHARE = 0.2;
/** Fewer samples in a third say nothing. */
const THIRD_SAMPLES_MIN = 3;

interface Series extends ProcessAtWork {
  points: { atS: number; bytes: number }[];
}

/** What was seen of each process. */
export class MemoryBook {
  readonly #series = new Map<number, Series>();

  /** Adds a sample of each process that still runs; resolves to bytes by name. */
  async sample(processes: readonly ProcessAtWork[], atS: number): Promise<Record<string, number>> {
    const seen: Record<string, number> = {};
    await Promise.all(
      processes.map(async ({ name, pid }) => {
        const bytes = await residentBytes(pid);
        if (bytes === undefined) return;
        this.add({ name, pid }, { atS, bytes });
        seen[name] = bytes;
      }),
    );
    return seen;
  }

  add({ name, pid }: ProcessAtWork, point: { atS: number; bytes: number }): void {
    const series = this.#series.get(pid) ?? { name, pid, points: [] };
    this.#series.set(pid, series);
    series.points.push(point);
  }

  /** Of every process; growth is told of those that lived from the warm-up's end to the end of a run of `windowS` seconds. */
  trends(windowS: number): MemoryTrend[] {
    return [...this.#series.values()].map(({ points, ...of }) => {
      const [fromS, toS] = [points[0]!.atS, points.at(-1)!.atS];
      const peakBytes = Math.max(...points.map(({ bytes }) => bytes));
      return { ...of, fromS, toS, peakBytes, ...growthOf(points, windowS) };
    });
  }
}

function growthOf(points: Series["points"], windowS: number): Partial<MemoryTrend> {
  const startS = WARM_UP_SHARE * windowS;
  const third = (windowS - startS) / 3;
  const within = (fromS: number, toS: number): number[] =>
    points.filter(({ atS }) => atS >= fromS && atS <= toS).map(({ bytes }) => bytes);
  const isWhole = points[0]!.atS <= startS && points.at(-1)!.atS >= windowS - third / 2;
  const [first, last] = [within(startS, startS + third), within(windowS - third, windowS)];
  if (!isWhole || Math.min(first.length, last.length) < THIRD_SAMPLES_MIN) return {};
  const [firstThirdBytes, lastThirdBytes] = [Math.min(...first), Math.min(...last)];
  return { firstThirdBytes, lastThirdBytes, growth: Math.round((lastThirdBytes / firstThirdBytes - 1) * 1e4) / 1e4 };
}

/** Resident memory of a process; undefined where it is gone, or the system does not tell (only Linux is asked). */
export async function residentBytes(pid: number): Promise<number | undefined> {
  const text = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(text)?.[1];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}
