import type { Manifest } from "../../storage/manifest.ts";
import type { ListedSession } from "../../storage/session-list.ts";
import { count, size, table, time } from "./tables.ts";

/** What is stored of a session, for people. */
export function describeSession(found: ListedSession, manifest: Manifest): string {
  const { geometry: g, segments, summaries, tail, hotBlocks, spans } = manifest;
  const bytesOf = (refs: readonly { objectBytes: number }[]) => refs.reduce((sum, ref) => sum + ref.objectBytes, 0);
  const facts: [string, string][] = [
    ["session", manifest.sessionId],
    ["namespace", found.namespace],
    ["model", `${manifest.modelFingerprint.slice(0, 16)}, numerics ${manifest.numericsId}`],
    ["pages", `${g.layerCount} layers, ${g.kvHeadCount} KV heads of ${g.headDim}, ${g.encoding}`],
    ["tokens", `${manifest.tokenCount}, chain ${manifest.chain.slice(0, 16)}`],
    ["committed", `${time(manifest.updatedMs)}, generation ${manifest.generation}`],
    ["attended", spans.map(({ end, how }) => `to ${end} ${how}`).join("; ")],
  ];
  const width = Math.max(...facts.map(([name]) => name.length)) + 2;
  const kinds = [...Map.groupBy(summaries, ({ kind }) => kind)];
  const parts: [what: string, objects: string, bytes: string][] = [
    ["segments", String(segments.length), size(bytesOf(segments))],
    ...kinds.map(([kind, refs]): [string, string, string] => [
      `summaries, ${kind}`,
      String(refs.length),
      size(bytesOf(refs)),
    ]),
    ["tail", tail ? "1" : "0", size(tail?.objectBytes ?? 0)],
    ["manifest", "1", size(found.manifestBytes)],
  ];
  const hot = hotBlocks.reduce((sum, blocks) => sum + blocks.length, 0);
  return (
    `${facts.map(([name, text]) => name.padEnd(width) + text).join("\n")}\n\n` +
    `${table(["STORED", "OBJECTS", "SIZE"], parts)}\n` +
    `${hot === 0 ? "no blocks are marked hot" : `${count(hot, "block")} marked hot (${size(hot * g.blockBytes)} of the first burst)`}\n`
  );
}
