/** What a pull shows while it runs: bars on a terminal, a line now and then elsewhere. */
import type { HubFile } from "./hub-files.ts";
import type { PullObserver } from "./pull-model.ts";

/** Where it is shown. */
export interface Screen {
  write(text: string): void;
  /** Bars may be drawn over. */
  isTerminal: boolean;
  /** Characters of a line; asked each time, for windows change. */
  columns(): number;
  /** Any clock that only goes forward. */
  nowMs(): number;
}

const redrawMs = 100;
const plainMs = 10_000;
const barWidth = 24;

/** Watches one pull. Ends with its last file; {@link PullProgress.close} ends it sooner. */
export class PullProgress implements PullObserver {
  readonly #screen: Screen;
  readonly #thereBytes = new Map<HubFile, number>();
  readonly #active = new Set<HubFile>();
  #totalBytes = 0;
  #startMs = 0;
  /** Of these, `#startBytes` were there before this process. */
  readonly #startBytes = new Map<HubFile, number>();
  #saidMs = 0;
  #lineCount = 0;

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  onStart(files: readonly HubFile[]): void {
    this.#totalBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
    this.#startMs = this.#saidMs = this.#screen.nowMs();
    this.#say(`${files.length} ${files.length === 1 ? "file" : "files"}, ${size(this.#totalBytes)}`);
  }

  onProgress(file: HubFile, thereBytes: number): void {
    if (!this.#startBytes.has(file)) this.#startBytes.set(file, thereBytes);
    this.#thereBytes.set(file, thereBytes);
    this.#active.add(file);
    const isDue = this.#screen.nowMs() - this.#saidMs >= (this.#screen.isTerminal ? redrawMs : plainMs);
    if (!isDue) return;
    this.#saidMs = this.#screen.nowMs();
    if (this.#screen.isTerminal) this.#draw();
    else this.#say(this.#summary());
  }

  onDone(file: HubFile): void {
    this.#active.delete(file);
    this.#say(`${file.path}: ${size(file.sizeBytes)}, checked`);
  }

  onRetry(message: string, delayMs: number): void {
    this.#say(`${message}; again in ${(delayMs / 1000).toFixed(1)} s`);
  }

  /** Takes the bars away. */
  close(): void {
    this.#erase();
  }

  /** A line that stays, above the bars. */
  #say(line: string): void {
    this.#erase();
    this.#screen.write(`quire: ${line}\n`);
    if (this.#screen.isTerminal) this.#draw();
  }

  #erase(): void {
    if (this.#lineCount > 0) this.#screen.write(`\u001b[${this.#lineCount}A\u001b[J`);
    this.#lineCount = 0;
  }

  #draw(): void {
    this.#erase();
    if (this.#active.size === 0) return;
    const bars = [...this.#active].map((file) => bar(file, this.#thereBytes.get(file) ?? 0));
    // A line that wraps would be two to erase.
    const width = Math.max(1, this.#screen.columns() - 1);
    const lines = [...bars, this.#summary()].map((line) => line.slice(0, width));
    this.#screen.write(`${lines.join("\n")}\n`);
    this.#lineCount = lines.length;
  }

  #summary(): string {
    const thereBytes = sum(this.#thereBytes.values());
    const newBytes = Math.max(0, thereBytes - sum(this.#startBytes.values()));
    const seconds = Math.max(0.001, (this.#screen.nowMs() - this.#startMs) / 1000);
    const percent = this.#totalBytes === 0 ? 100 : Math.floor((100 * thereBytes) / this.#totalBytes);
    return `${percent} % of ${size(this.#totalBytes)}, ${size(newBytes / seconds)}/s`;
  }
}

function bar(file: HubFile, thereBytes: number): string {
  const share = file.sizeBytes === 0 ? 1 : thereBytes / file.sizeBytes;
  const full = Math.floor(share * barWidth);
  const percent = String(Math.floor(share * 100)).padStart(3);
  return `[${"#".repeat(full)}${"-".repeat(barWidth - full)}] ${percent} %  ${file.path} (${size(file.sizeBytes)})`;
}

function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

function size(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1024 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}
