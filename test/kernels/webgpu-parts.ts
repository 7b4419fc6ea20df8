import type { ConformancePart } from "./conformance.ts";

/**
 * What of the suite a software GPU passes in every `npm test`, with one random trace in place of twelve. Selection and attention over what it chose are
 * judged there on one shape only (webgpu-device.test.ts). The rest, which is the same kernels on many more shapes, runs in webgpu.long.test.ts: `npm run test:webgpu`, `npm run test:full`. A software adapter takes seconds
 * to compile attention for one shape of heads.
 */
export const QUICK_PARTS: readonly ConformancePart[] = ["rows", "sampling", "misuse"];
