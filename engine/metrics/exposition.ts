/** Counters, gauges and histograms, and their text as Prometheus reads it (exposition format 0.0.4). Label values are escaped; names are the code's own. */
import { assert } from "../../protocol/assert.ts";

/** Content type of {@link MetricRegistry.expose}. */
export const EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Different label values of one metric; beyond it, all go to "other", so that memory has a bound. */
const SERIES_MAX = 64;

type Labels = Readonly<Record<string, string>>;

const NO_LABELS: Labels = {};

/** A count that only grows. */
export class Counter {
  readonly #values = new Map<string, number>();

  add(amount: number, labels: Labels = NO_LABELS): void {
    assert(amount >= 0, "a counter only grows");
    // Every token is counted: no text is made for it.
    let key = labels === NO_LABELS ? "" : labelText(labels);
    if (!this.#values.has(key) && this.#values.size >= SERIES_MAX)
      key = labelText(Object.fromEntries(Object.keys(labels).map((name) => [name, "other"])));
    this.#values.set(key, (this.#values.get(key) ?? 0) + amount);
  }

  lines(name: string): string[] {
    return [...this.#values].map(([labels, value]) => `${name}${labels} ${value}`);
  }
}

/** A value that is asked for when it is read. */
export class Gauge {
  readonly #read: () => readonly (readonly [Labels, number])[];

  constructor(read: () => number | readonly (readonly [Labels, number])[]) {
    this.#read = () => {
      const value = read();
      return typeof value === "number" ? [[{}, value]] : value;
    };
  }

  lines(name: string): string[] {
    return this.#read().map(([labels, value]) => `${name}${labelText(labels)} ${value}`);
  }
}

/** Counts of values up to fixed bounds, ascending; the last bucket is +Inf. */
export class Histogram {
  readonly #bounds: readonly number[];
  readonly #counts: number[];
  #sum = 0;
  #count = 0;

  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#counts = bounds.map(() => 0);
  }

  observe(value: number): void {
    const index = this.#bounds.findIndex((bound) => value <= bound);
    if (index >= 0) this.#counts[index]! += 1;
    this.#sum += value;
    this.#count += 1;
  }

  lines(name: string): string[] {
    let below = 0;
    const buckets = this.#bounds.map((bound, i) => {
      below += this.#counts[i]!;
      return `${name}_bucket{le="${bound}"} ${below}`;
    });
    return [
      ...buckets,
      `${name}_bucket{le="+Inf"} ${this.#count}`,
      `${name}_sum ${this.#sum}`,
      `${name}_count ${this.#count}`,
    ];
  }
}

/** All metrics of a process, in the order in which they were made. */
export class MetricRegistry {
  readonly #metrics = new Map<string, { help: string; type: string; metric: { lines(name: string): string[] } }>();

  /** @param name ends in `_total`. */
  counter(name: string, help: string): Counter {
    assert(name.endsWith("_total"), `counter ${name} ends in _total`);
    return this.#add(name, help, "counter", new Counter());
  }

  gauge(name: string, help: string, read: ConstructorParameters<typeof Gauge>[0]): Gauge {
    return this.#add(name, help, "gauge", new Gauge(read));
  }

  /** A counter that is kept elsewhere. @param name ends in `_total`. */
  total(name: string, help: string, read: ConstructorParameters<typeof Gauge>[0]): Gauge {
    assert(name.endsWith("_total"), `counter ${name} ends in _total`);
    return this.#add(name, help, "counter", new Gauge(read));
  }

  histogram(name: string, help: string, bounds: readonly number[]): Histogram {
    return this.#add(name, help, "histogram", new Histogram(bounds));
  }

  /** Everything, as text. */
  expose(): string {
    const parts = [...this.#metrics].map(([name, { help, type, metric }]) =>
      [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...metric.lines(name)].join("\n"),
    );
    return `${parts.join("\n")}\n`;
  }

  #add<M extends { lines(name: string): string[] }>(name: string, help: string, type: string, metric: M): M {
    assert(/^[a-z_][a-z0-9_]*$/.test(name) && !this.#metrics.has(name), `metric ${name} is named once, in snake case`);
    this.#metrics.set(name, { help, type, metric });
    return metric;
  }
}

function labelText(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
