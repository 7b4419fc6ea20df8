/**
 * The page's script: the conformance suite on this browser's WebGPU. The query says what runs: `?parts=rows,misuse&traces=1` (default: all,
 * twelve traces). {@link ConformanceReport} lies in `globalThis.conformance` for whoever drives the browser.
 */
import { adapterReport, requestAdapter } from "../../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice } from "../../../kernels/webgpu/open-webgpu.ts";
import { CONFORMANCE_PARTS, type ConformancePart, describeConformance } from "../conformance.ts";
import type { ConformanceReport } from "./report.ts";
import { runSuite, type TestOutcome } from "./suite-in-page.ts";

/** What of the DOM this page uses; the types of this repository are Node's. */
interface Element {
  className: string;
  textContent: string | null;
  append(...nodes: unknown[]): void;
}
declare const location: { search: string };
declare const document: { createElement(tag: string): Element; getElementById(id: string): Element | null };

const report: ConformanceReport = { adapter: "", passed: 0, failed: [], isDone: false };
Object.assign(globalThis, { conformance: report });

try {
  const query = new URLSearchParams(location.search);
  const parts = (query.get("parts")?.split(",") ?? CONFORMANCE_PARTS) as ConformancePart[];
  const { description, features } = adapterReport(await requestAdapter());
  report.adapter = description;
  text("adapter", `${description}${features.length > 0 ? `, with ${features.join(", ")}` : ""}`);
  describeConformance("webgpu in a browser", () => openWebGpuDevice(), {
    parts,
    traceCount: Number(query.get("traces") ?? 12),
  });
  await runSuite(note);
  report.isDone = true;
} catch (error) {
  report.error = error instanceof Error ? error.message : String(error);
}
text("state", verdict());

function note(outcome: TestOutcome): void {
  if (outcome.error === undefined) report.passed += 1;
  else report.failed.push({ name: outcome.name, error: outcome.error });
  const line = document.createElement("li");
  line.className = outcome.error === undefined ? "passed" : "failed";
  line.textContent = `${outcome.name} (${outcome.ms.toFixed(0)} ms)`;
  if (outcome.error !== undefined)
    line.append(Object.assign(document.createElement("pre"), { textContent: outcome.error }));
  document.getElementById("tests")?.append(line);
  text("state", `${report.passed} passed, ${report.failed.length} failed, running`);
}

function verdict(): string {
  if (report.error !== undefined) return `could not run: ${report.error}`;
  return `${report.passed} passed, ${report.failed.length} failed`;
}

function text(id: string, content: string): void {
  const element = document.getElementById(id);
  if (element) element.textContent = content;
}
