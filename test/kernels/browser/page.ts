/**
 * The page's script: the conformance suite on this browser's WebGPU. The query says what runs: `?parts=rows,misuse&traces=1` (default: all,
 * twelve traces). {@link ConformanceReport} lies in `globalThis.conformance` for whoever drives the browser.
 */
import { adapterReport, requestAdapter } from "../../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice } from "../../../kernels/webgpu/open-webgpu.ts";
import { CONFORMANCE_PARTS, type ConformancePart, describeConformance } from "../conformance.ts";
import type { ConformanceReport } from "./report.ts";
import { runSuite, type TestOutcome, testCount } from "./suite-in-page.ts";

/** What of the DOM this page uses; the types of this repository are Node's. */
interface Element {
  className: string;
  textContent: string | null;
  /** Of a `details` and a `progress`. */
  open: boolean;
  value: number;
  max: number;
  append(...nodes: unknown[]): void;
}
declare const location: { search: string };
declare const document: { createElement(tag: string): Element; getElementById(id: string): Element | null };

const report: ConformanceReport = { adapter: "", passed: 0, failed: [], isDone: false };
Object.assign(globalThis, { conformance: report });
const startMs = performance.now();
const parts = new Map<string, Part>();

try {
  const query = new URLSearchParams(location.search);
  const chosen = (query.get("parts")?.split(",") ?? CONFORMANCE_PARTS) as ConformancePart[];
  const { description, features } = adapterReport(await requestAdapter());
  report.adapter = description;
  text("adapter", `${description}${features.length > 0 ? `, with ${features.join(", ")}` : ""}`);
  describeConformance("webgpu in a browser", () => openWebGpuDevice(), {
    parts: chosen,
    traceCount: Number(query.get("traces") ?? 12),
  });
  await runSuite(note);
  report.isDone = true;
} catch (error) {
  report.error = error instanceof Error ? error.message : String(error);
}
show(verdict(), report.error === undefined && report.failed.length === 0 ? "passed" : "failed");

/** The tests of one suite, as the page shows them. */
interface Part {
  box: Element;
  count: Element;
  list: Element;
  passed: number;
  failed: number;
  ms: number;
}

function note({ name, error, ms }: TestOutcome): void {
  if (error === undefined) report.passed += 1;
  else report.failed.push({ name, error });
  const [, ...names] = name.split(" > ");
  const test = names.pop() ?? name;
  const part = partOf(names.join(" > ") || "in no suite of their own");
  part.passed += error === undefined ? 1 : 0;
  part.failed += error === undefined ? 0 : 1;
  part.ms += ms;
  part.count.textContent = `${counts(part)}, ${seconds(part.ms)}`;
  const line = element("li", error === undefined ? "passed" : "failed");
  line.append(test, element("span", "ms", `${ms.toFixed(0)} ms`));
  if (error !== undefined) {
    line.append(element("pre", "", error));
    part.box.className = "failed";
    part.box.open = true;
  }
  part.list.append(line);
  const bar = document.getElementById("progress");
  if (bar) Object.assign(bar, { max: testCount(), value: report.passed + report.failed.length });
  show(`${counts({ passed: report.passed, failed: report.failed.length })} of ${testCount()}, running`, "");
}

function partOf(title: string): Part {
  const known = parts.get(title);
  if (known !== undefined) return known;
  const part = { box: element("details", ""), count: element("span", "count"), list: element("ol", "") };
  const head = element("summary", "");
  head.append(element("span", "", title), part.count);
  part.box.append(head, part.list);
  document.getElementById("parts")?.append(part.box);
  const fresh = { ...part, passed: 0, failed: 0, ms: 0 };
  parts.set(title, fresh);
  return fresh;
}

function verdict(): string {
  if (report.error !== undefined) return `could not run: ${report.error}`;
  return `${counts({ passed: report.passed, failed: report.failed.length })} in ${seconds(performance.now() - startMs)}`;
}

function counts({ passed, failed }: { passed: number; failed: number }): string {
  return failed === 0 ? `${passed} passed` : `${passed} passed, ${failed} failed`;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

function show(state: string, className: string): void {
  text("state", state);
  const line = document.getElementById("state");
  if (line) line.className = className;
}

function element(tag: string, className: string, content = ""): Element {
  return Object.assign(document.createElement(tag), { className, textContent: content });
}

function text(id: string, content: string): void {
  const line = document.getElementById(id);
  if (line) line.textContent = content;
}
