// Reads whose only purpose is that memory is on its way when it is needed: WebAssembly has no instruction for it.

import { TOUCHED } from "./control";

/** How far ahead of a stream that one thread reads in order: some 5 microseconds. */
const AHEAD_BYTES: usize = 98_304;
const STEP_BYTES: usize = 4096;

/**
 * For a stream that is about to read `bytes` bytes at `from`: touches every page of 4 KiB as far ahead, below `end`, because hardware follows
 * a stream only to the end of a page, and looking up the next one takes long. Returns something that depends on what was read; the
 * caller gives it to {@link keepTouched}.
 */
export function touchAhead(from: usize, bytes: usize, end: usize): i32 {
  const first = from + AHEAD_BYTES;
  let sum = 0;
  for (let at = first; at < first + bytes; at += STEP_BYTES) {
    if (at < end) sum += load<i32>(at);
  }
  return sum;
}

/** Loads whose result is not used might be left out: stores a sum of them where nobody looks. */
// @ts-ignore: decorator
@inline
export function keepTouched(sum: i32): void {
  store<i32>(TOUCHED, sum);
}

/** Reads a word of each cache line of `bytes` bytes at `from`; returns their sum, for the caller to keep. */
// @ts-ignore: decorator
@inline
export function fetchLines(from: usize, bytes: usize): i32 {
  let sum = 0;
  for (let at: usize = 0; at < bytes; at += 64) sum += load<i32>(from + at);
  return sum;
}

/** The same for `count` pieces of `bytes` bytes, whose addresses stand at `pieces`: the first line of each, then the second. */
// @ts-ignore: decorator
@inline
export function fetchAcross(pieces: usize, count: usize, bytes: usize): i32 {
  const end = pieces + (count << 2);
  let sum = 0;
  for (let at: usize = 0; at < bytes; at += 64) {
    for (let piece = pieces; piece < end; piece += 4) sum += load<i32>(<usize>load<u32>(piece) + at);
  }
  return sum;
}
