/** The objects behind the golden files. */
import { join } from "node:path";
import { encodeManifest } from "../../storage/manifest.ts";
import { SMALL, sampleSegment, sampleSession, sampleSummaryObject, sampleTail } from "./samples.ts";

/** Path of a golden file. */
export function goldenPath(name: string): string {
  return join(import.meta.dirname, "fixtures", "golden", `${name}.bin`);
}

/** What today's encoders make of the samples. */
export function goldenObjects(): [name: string, bytes: Uint8Array][] {
  const { manifest } = sampleSession(SMALL, { sessionId: "a session", segmentCount: 2, tailTokens: 70 });
  return [
    ["segment", sampleSegment(SMALL, 128)],
    ["summaries", sampleSummaryObject(SMALL, 2, 128)],
    ["tail", sampleTail(SMALL, 70, 256)],
    ["manifest", encodeManifest(manifest)],
  ];
}
