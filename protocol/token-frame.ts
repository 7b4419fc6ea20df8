/** The frame that most of an engine's answer is made of, read without the general decoder: token ids, and nothing else. */
import { encodeFrame } from "./frames.ts";

const LENGTH_BYTES = 4;
const SAMPLE_IDS_BYTES = 4;

/** What stands between the frame's length and that of its ids: the same bytes for each event of up to 63 ids without logprobs. */
const HEAD = headOf(encodeFrame({ type: "tokens", ids: new Uint8Array(SAMPLE_IDS_BYTES) }));

function headOf(frame: Uint8Array): Uint8Array {
  return frame.slice(LENGTH_BYTES, frame.byteLength - SAMPLE_IDS_BYTES - 1);
}

/**
 * The ids (little-endian u32 bytes, a copy) of a chunk that is exactly one frame `{type: "tokens", ids}` of at most 255 bytes of ids, as `encodeFrame` writes it.
 * @returns undefined for any other chunk, which says nothing of whether it is one
 */
export function tokenFrameIds(chunk: Uint8Array): Uint8Array | undefined {
  const idsAt = LENGTH_BYTES + HEAD.byteLength + 1;
  const { byteLength } = chunk;
  const bodyBytes = byteLength - LENGTH_BYTES;
  if (byteLength < idsAt || byteLength - idsAt !== chunk[idsAt - 1]) return undefined;
  if (chunk[0] !== (bodyBytes & 0xff) || chunk[1] !== bodyBytes >>> 8 || chunk[2] !== 0 || chunk[3] !== 0)
    return undefined;
  for (let index = 0; index < HEAD.byteLength; index++) {
    if (chunk[LENGTH_BYTES + index] !== HEAD[index]) return undefined;
  }
  return chunk.slice(idsAt);
}
