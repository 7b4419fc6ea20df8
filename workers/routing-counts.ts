/** The edge's own metrics: what became of prompts that the prompt router was asked about. Kept by the Fleet objects, since they start. */

/** "late", "failed" and "resting" ran on the default model; so did "unserved", whose model no engine served. */
export const ROUTING_OUTCOMES = ["chosen", "unserved", "late", "failed", "resting"] as const;
/** What became of one prompt. */
export type RoutingOutcome = (typeof ROUTING_OUTCOMES)[number];

/** How many of each. */
export type RoutingCounts = Record<RoutingOutcome, number>;

/** None of any. */
export function emptyCounts(): RoutingCounts {
  return { chosen: 0, unserved: 0, late: 0, failed: 0, resting: 0 };
}

/** Prometheus text of the sums over all Fleet objects. */
export function metricsText(counts: readonly RoutingCounts[]): string {
  const name = "quire_prompt_router_prompts_total";
  const lines = ROUTING_OUTCOMES.map((outcome) => {
    const sum = counts.reduce((total, { [outcome]: count }) => total + count, 0);
    return `${name}{outcome="${outcome}"} ${sum}\n`;
  });
  return `# HELP ${name} Prompts with model auto, by what the prompt router did.\n# TYPE ${name} counter\n${lines.join("")}`;
}
