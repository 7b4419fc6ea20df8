/** Resident memory of the processes of a run, sampled while it lasts, and whether it is flat. */
import { readFile } from "node:fs/promises";
import { collectGarbage } from "./inspector.ts";

/** A process that is measured. */
export interface ProcessAtWork {
  /** Names what it does: `engine 1`, `edge`; one that was killed and started again has the same name and another pid. */
  name: string;
  pid: number;
  /** Web socket of its V8's inspector, where it has one: its garbage can be collected before it is measured. */
  inspectorUrl?: string | undefined;
}

/** Memory at one moment. */
export interface MemoryPoint {
  atS: number;
  /** Resident. */
  bytes: number;
  /** In use by JavaScript, behind a collection. */
  heapBytes?: number;
}

/** What became of one process's memory. */
export interface MemoryTrend {
  name: string;
  pid: number;
  fromS: number;
  toS: number;
  /** The most that was seen at any moment. */
  peakBytes: number;
  /** Whether what follows is what was left behind collections of garbage, not whatever was resident. */
  isCollected: boolean;
  /**
   * The lowest of the first and the last third of its life behind the warm-up, and last over first less 1: the lowest, because a heap grows until it is
   * collected, and a median tells where in that a third lies. Absent: it did not live that long.
   */
  firstThirdBytes?: number;
  lastThirdBytes?: number;
  growth?: number;
  /** The same of what JavaScript's heap had in use behind a collection. */
  firstThirdHeapBytes?: number;
  lastThirdHeapBytes?: number;
  /** What was seen behind each collection. */
  collected: readonly MemoryPoint[];
}

/** Of a run, what is left to filling pools and compiling. */
const WARM_UP_SHARE = 0.2;
/** Fewer samples in a third say nothing. */
const THIRD_SAMPLES_MIN = 3;

interface Series extends Pick<ProcessAtWork, "name" | "pid"> {
  points: MemoryPoint[];
  /** Behind collections. */
  collected: MemoryPoint[];
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

  /** Has the garbage of each process with an inspector collected, one after the other, and adds what is resident then; one that ends meanwhile is left out. */
  async sampleCollected(processes: readonly ProcessAtWork[], nowS: () => number): Promise<void> {
    for (const { name, pid, inspectorUrl } of processes) {
      const heapBytes = inspectorUrl && (await collectGarbage(inspectorUrl).catch(() => undefined));
      const bytes = heapBytes && (await residentBytes(pid));
      if (heapBytes && bytes) this.addCollected({ name, pid }, { atS: nowS(), bytes, heapBytes });
    }
  }

  add(of: ProcessAtWork, point: MemoryPoint): void {
    this.#seriesOf(of).points.push(point);
  }

  /** Adds a sample that was taken behind a collection. */
  addCollected(of: ProcessAtWork, point: MemoryPoint): void {
    this.#seriesOf(of).collected.push(point);
  }

  #seriesOf({ name, pid }: ProcessAtWork): Series {
    const series = this.#series.get(pid) ?? { name, pid, points: [], collected: [] };
    this.#series.set(pid, series);
    return series;
  }

  /**
   * Of every process; growth is told of those that lived from the warm-up's end to the end of a run of `windowS` seconds: behind collections, where there
   * were any.
   */
  trends(windowS: number): MemoryTrend[] {
    return [...this.#series.values()].map(({ points, collected, ...of }) => {
      const all = [...points, ...collected];
      const times = all.map(({ atS }) => atS);
      const peakBytes = Math.max(...all.map(({ bytes }) => bytes));
      const isCollected = collected.length > 0;
      const growth = growthOf(isCollected ? collected : points, windowS);
      return {
        ...of,
        fromS: Math.min(...times),
        toS: Math.max(...times),
        peakBytes,
        isCollected,
        collected,
        ...growth,
      };
    });
  }
}

function growthOf(points: readonly MemoryPoint[], windowS: number): Partial<MemoryTrend> {
  const startS = WARM_UP_SHARE * windowS;
  const third = (windowS - startS) / 3;
  const within = (fromS: number, toS: number) => points.filter(({ atS }) => atS >= fromS && atS <= toS);
  const isWhole = points[0]!.atS <= startS && points.at(-1)!.atS >= windowS - third / 2;
  const [first, last] = [within(startS, startS + third), within(windowS - third, windowS)];
  if (!isWhole || Math.min(first.length, last.length) < THIRD_SAMPLES_MIN) return {};
  const [firstThirdBytes, lastThirdBytes] = [lowest(first, "bytes"), lowest(last, "bytes")];
  const growth = Math.round((lastThirdBytes / firstThirdBytes - 1) * 1e4) / 1e4;
  const [firstThirdHeapBytes, lastThirdHeapBytes] = [lowest(first, "heapBytes"), lowest(last, "heapBytes")];
  const heap = Number.isFinite(firstThirdHeapBytes) ? { firstThirdHeapBytes, lastThirdHeapBytes } : {};
  return { firstThirdBytes, lastThirdBytes, growth, ...heap };
}

function lowest(points: readonly MemoryPoint[], part: "bytes" | "heapBytes"): number {
  return Math.min(...points.map(({ [part]: bytes = Number.POSITIVE_INFINITY }) => bytes));
}

/** Resident memory of a process; undefined where it is gone, or the system does not tell (only Linux is asked). */
export async function residentBytes(pid: number): Promise<number | undefined> {
  const text = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(text)?.[1];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}
