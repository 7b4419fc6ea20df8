/** What a GPU can do at most, measured with kernels that do nothing else; the project's own kernels are measured against it. */
import { ownBuffer } from "../../kernels/webgpu/buffers.ts";
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import { type Kernel, read, write } from "../../kernels/webgpu/kernel.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import type { MachineLimits } from "../kernels/machine-limits.ts";

/** The best of several runs. Arithmetic is that of plain WGSL, without matrix units. */
export interface GpuLimits extends MachineLimits {
  /** Bytes a second that a large copy reads and writes, both counted. */
  copyBytesPerS: number;
}

/** How much is moved and computed for one figure. */
export interface GpuLimitSizes {
  /** Far larger than the GPU's caches, at most what it binds at once. */
  copyBytes: number;
  /** Work groups of arithmetic, and how often each chain goes on. */
  groups: number;
  rounds: number;
  /** How long each is repeated, half of it before the clock counts: an idle GPU's clocks take a while to rise, and a limit measured too low flatters every share. */
  windowMs: number;
}

/** `full` is for hardware, `small` shows on a software GPU that everything runs. */
export const GPU_LIMIT_SIZES = {
  full: { copyBytes: 2 ** 30, groups: 8192, rounds: 512, windowMs: 400 },
  small: { copyBytes: 2 ** 16, groups: 2, rounds: 4, windowMs: 2 },
} as const satisfies Record<string, GpuLimitSizes>;

const THREADS = 256;
/** Independent chains of each thread: no result is waited for. */
const CHAINS = 8;
const READ_GROUPS = 4096;
/** Vectors that a thread copies: with fewer, a GiB takes more work groups than a grid has in one dimension. */
const COPY_AHEAD = 8;
const RUNS_MIN = 5;

/** Reads everything; what comes of it only keeps the reads alive. Threads stride over `count` vectors. */
const READ_ALL: Kernel = {
  name: "bench_read_all",
  params: { count: "u32" },
  bindings: { x: read("vec4u"), out: write("u32") },
  code: /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let stride = groups.x * ${THREADS}u;
  var seen = vec4u(0u);
  for (var at = id.x; at < p.count; at += stride) { seen ^= x[at]; }
  if ((seen.x ^ seen.y ^ seen.z ^ seen.w) == 0x9e3779b9u) { out[0] = 1u; }
}
`,
};

/** Copies `count` vectors, some of each thread on their way at once. */
const COPY_ALL: Kernel = {
  name: "bench_copy_all",
  params: { count: "u32" },
  bindings: { x: read("vec4u"), out: write("vec4u") },
  code: /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let at = wg.x * ${THREADS * COPY_AHEAD}u + lid;
${aheadLines((n) => `  let copied${n} = x[at + ${n * THREADS}u];`)}
${aheadLines((n) => `  if (at + ${n * THREADS}u < p.count) { out[at + ${n * THREADS}u] = copied${n}; }`)}
}
`,
};

function aheadLines(line: (n: number) => string): string {
  return Array.from({ length: COPY_AHEAD }, (_, n) => line(n)).join("\n");
}

/** Chains of multiply-adds of four f32. */
const MULTIPLY_F32 = arithmetic("bench_multiply_f32", {
  type: "vec4f",
  first: (chain) => `vec4f(f32(id.x + ${chain}u) * 1e-6)`,
  next: (c) => `fma(${c}, vec4f(0.999), vec4f(1e-3))`,
  word: (c) => `bitcast<u32>(${c}.x + ${c}.y + ${c}.z + ${c}.w)`,
});

/** Chains of four products of int8 and their sum. */
const MULTIPLY_INT8 = arithmetic("bench_multiply_int8", {
  type: "i32",
  first: (chain) => `i32(id.x + ${chain}u)`,
  next: (c) => `${c} + dot4I8Packed(u32(${c}), 0x01020304u)`,
  word: (c) => `u32(${c})`,
});
/** Operations of one link of a chain; a multiply-add counts as two. */
const LINK_OPS = 8;

function arithmetic(
  name: string,
  {
    type,
    first,
    next,
    word,
  }: { type: string; first(chain: number): string; next(c: string): string; word(c: string): string },
): Kernel {
  const chains = Array.from({ length: CHAINS }, (_, chain) => `c${chain}`);
  return {
    name,
    params: { rounds: "u32" },
    bindings: { out: write("u32") },
    code: /* wgsl */ `
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3u) {
  ${chains.map((c, chain) => `var ${c}: ${type} = ${first(chain)};`).join("\n  ")}
  for (var round = 0u; round < p.rounds; round++) {
    ${chains.map((c) => `${c} = ${next(c)};`).join("\n    ")}
  }
  if ((${chains.map(word).join(" ^ ")}) == 0x9e3779b9u) { out[0] = 1u; }
}
`,
  };
}

/** Measures all limits; needs timestamp-query. */
export async function measureGpuLimits(device: WebGpuDevice, sizes: GpuLimitSizes): Promise<GpuLimits> {
  const copyBytes = Math.min(sizes.copyBytes, device.adapter.bindingBytesMax);
  const [from, to] = ["from", "to"].map((label) => device.buffer(label, copyBytes));
  const word = device.buffer("word", 16);
  const out = ownBuffer(word).memory;
  const fastest = (run: () => Promise<void>): Promise<number> => fastestMs(device, sizes.windowMs, run);
  try {
    // Of two ways to copy the faster is what shares are of: a slow one would flatter them.
    const plainMs = await fastest(async () => {
      const recorder = device.begin([]);
      recorder.copyRows({ out: to!, outRow: 0, x: from!, xRow: 0, rows: 1, width: copyBytes / 4 });
      await recorder.submit();
    });
    const memories = [ownBuffer(from!).memory, ownBuffer(to!).memory];
    const groups = Math.ceil(copyBytes / 16 / THREADS / COPY_AHEAD);
    const aheadMs = await fastest(() => device.runKernel(COPY_ALL, { count: copyBytes / 16 }, memories, [groups]));
    const copyMs = Math.min(plainMs, aheadMs);
    const readMs = await fastest(() =>
      device.runKernel(READ_ALL, { count: copyBytes / 16 }, [ownBuffer(from!).memory, out], [READ_GROUPS]),
    );
    const rate = async (kernel: Kernel): Promise<number> => {
      const { groups, rounds } = sizes;
      const ms = await fastest(() => device.runKernel(kernel, { rounds }, [out], [groups]));
      return (groups * THREADS * rounds * CHAINS * LINK_OPS * 1000) / ms;
    };
    return {
      copyBytesPerS: (2 * copyBytes * 1000) / copyMs,
      readBytesPerS: (copyBytes * 1000) / readMs,
      int8OpsPerS: await rate(MULTIPLY_INT8),
      f32OpsPerS: await rate(MULTIPLY_F32),
    };
  } finally {
    for (const buffer of [from!, to!, word]) device.release(buffer);
  }
}

/** The least time that the kernels of `run` took, of several runs behind some that are not timed. */
async function fastestMs(device: WebGpuDevice, windowMs: number, run: () => Promise<void>): Promise<number> {
  const startMs = performance.now();
  do await run();
  while (performance.now() < startMs + windowMs / 2);
  let best = Number.POSITIVE_INFINITY;
  for (let count = 0; count < RUNS_MIN || performance.now() < startMs + windowMs; count++) {
    const times: KernelTime[] = [];
    device.time(times);
    await run();
    best = Math.min(best, times.reduce((sum, { ns }) => sum + ns, 0) / 1e6);
  }
  device.time(undefined);
  return best;
}
