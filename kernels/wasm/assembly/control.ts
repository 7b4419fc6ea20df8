// The control page: where the host and all threads meet. Offsets are mirrored in kernels/wasm/thread-pool.ts.
// Words that different threads write lie on cache lines of their own.

/** Tasks of the running op that nobody has claimed; claims count down, so a thread that comes late claims nothing. */
export const REMAINING: usize = 64;
/** Tasks of the running op that are finished. */
export const FINISHED: usize = 128;
/** Counts ops; a worker waits for it to change. */
export const GENERATION: usize = 192;
/** Workers that sleep, or are about to. */
export const SLEEPERS: usize = 256;
/** 1 while the main thread sleeps until FINISHED changes. */
export const MAIN_SLEEPS: usize = 320;
/** 1: workers return. */
export const STOPPED: usize = 384;
/** 1: a worker has died; the op that runs will never finish. */
export const FAILED: usize = 448;
/** What runs: op, task count, then up to 48 words of arguments. */
export const OP: usize = 512;
export const TASK_COUNT: usize = 516;
export const ARGS: usize = 576;
/** Address and bytes of the scratch area of each thread. */
export const SCRATCH: usize = 1024;
export const SCRATCH_BYTES: usize = 1028;

/** Where all threads store what nobody reads; a cache line of its own. */
export const TOUCHED: usize = 1216;

/** Thirteen f32 that the exponential needs, and three i32; see vector.ts. */
export const EXP_TABLE: usize = 1088;

/** Argument `index` as an integer or an address. */
// @ts-ignore: decorator
@inline
export function arg(index: i32): i32 {
  return load<i32>(ARGS + ((<usize>index) << 2));
}

/** Argument `index` as an address. */
// @ts-ignore: decorator
@inline
export function argAt(index: i32): usize {
  return load<u32>(ARGS + ((<usize>index) << 2));
}

/** Argument `index` as an f32. */
// @ts-ignore: decorator
@inline
export function argF32(index: i32): f32 {
  return load<f32>(ARGS + ((<usize>index) << 2));
}

/** The scratch area of a thread. */
// @ts-ignore: decorator
@inline
export function scratchOf(thread: i32): usize {
  return <usize>load<u32>(SCRATCH) + <usize>load<u32>(SCRATCH_BYTES) * <usize>thread;
}

/** First unit of part `part` when `count` units are dealt to `parts` parts. */
// @ts-ignore: decorator
@inline
export function partStart(count: i32, part: i32, parts: i32): i32 {
  return <i32>((<i64>count * <i64>part) / <i64>parts);
}
