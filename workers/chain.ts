/** Transcript hashes: one per message, each over everything before it, so that equal hashes mean equal transcripts. */

import { contentDigestHex } from "../protocol/digest.ts";
import type { ChatMessage } from "../tokenizer/contract.ts";

const utf8 = new TextEncoder();

/** Where the transcripts of a model begin: transcripts of two models never meet, their token ids differ. */
export function chainStart(model: string): string {
  return `quire-transcript-1:${model}`;
}

/** The hash after each of `messages`, going on from `start` (a {@link chainStart} or an earlier hash). Lower-case hex. */
export async function chainHashes(start: string, messages: readonly ChatMessage[]): Promise<string[]> {
  const hashes: string[] = [];
  let previous = start;
  for (const message of messages) {
    const link = JSON.stringify([previous, message.role, message.name ?? null, message.content]);
    const digest = contentDigestHex(utf8.encode(link));
    previous = typeof digest === "string" ? digest : await digest;
    hashes.push(previous);
  }
  return hashes;
}
