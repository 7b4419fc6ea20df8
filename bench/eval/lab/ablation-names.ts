/** What can be taken apart: the votes and the threshold of TokenSelect, Quest's page size, choices that are kept, RetroInfer's estimate of the rest, what keys are scored by. */
export const ABLATIONS = ["votes", "threshold", "page-size", "runs", "estimate", "scores"] as const;
/** One of {@link ABLATIONS}. */
export type AblationName = (typeof ABLATIONS)[number];
