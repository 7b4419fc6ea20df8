/** Values between objects: one frame, because structured clones of long texts meet a size limit twice as early. */
import { assert } from "../../protocol/assert.ts";
import { FrameDecoder } from "../../protocol/frames.ts";

/** Between Worker and objects a frame carries a whole request body or log; calls take up to 32 MiB. */
const FRAME_BYTES_MAX = 31 * 1024 * 1024;

/** Unpacks the one value of a frame made by `encodeFrame`; the sender is this Worker, so its shape is trusted. */
export function unpackValue<T>(frame: Uint8Array): T {
  const [value] = new FrameDecoder(FRAME_BYTES_MAX).push(frame);
  assert(value !== undefined, "one whole frame");
  return value as T;
}
