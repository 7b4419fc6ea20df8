/** What the conformance page knows so far. */
export interface ConformanceReport {
  adapter: string;
  passed: number;
  failed: { name: string; error: string }[];
  /** True once every test has run. */
  isDone: boolean;
  /** Why the suite could not run to its end. */
  error?: string;
}
