/** Kernels by which features.ts asks a GPU whether its optional features give the right bits, and what they must write. */
import { type Kernel, write } from "../kernel.ts";
import { halfPair } from "./half.ts";
import { laneParam, laneWidth, sumBefore, sumOf } from "./reduce.ts";

/** Sizes of the work groups that reduce. */
export const LANE_CHECK_SIZES = [64, 256] as const;
const WORDS = 3;

/** f32 bits between 1 and 2, whose sums are rounded: another order of additions would show. */
const valueBits = (lid: number): number => 0x3f80_0000 + (Math.imul(lid + 1, 0x9e37_79b1) & 0x7f_ffff);
/**
 * Per thread: whether it is in the place of its subgroup that reduce.ts relies on, the sum of all values, and the sum of the ids before its
 * own. Grid [1].
 */
export function laneCheck(threads: number): Kernel {
  return {
    name: `lane_check_${threads}`,
    params: {},
    bindings: { out: write("u32") },
    code: (lane) => {
      const isNative = lane.subgroups === "native";
      const placeParam = isNative ? ", @builtin(subgroup_invocation_id) place: u32" : "";
      return /* wgsl */ `
${laneWidth(lane)}${sumOf(lane, threads)}${sumBefore(lane, threads, "u32")}
@compute @workgroup_size(${threads})
fn main(@builtin(local_invocation_index) lid: u32${placeParam}${laneParam(lane)}) {
  let is_in_place = countOneBits(lane_width) == 1u && ${isNative ? "place" : "lid % lane_width"} == lid % lane_width;
  let sum = sum_of(bitcast<f32>(0x3f800000u + (((lid + 1u) * 0x9e3779b1u) & 0x7fffffu)), lid, lane_width);
  let before = sum_before(lid, lid, lane_width);
  out[lid * ${WORDS}u] = select(0u, 1u, is_in_place);
  out[lid * ${WORDS}u + 1u] = bitcast<u32>(sum);
  out[lid * ${WORDS}u + 2u] = before;
}
`;
    },
  };
}

/** What {@link laneCheck} writes: the tree of reduce.ts, added on the host. */
export function laneCheckExpected(threads: number): Uint32Array {
  const ids = Array.from({ length: threads }, (_, lid) => lid);
  let sums = new Float32Array(Uint32Array.from(ids, valueBits).buffer);
  for (let d = 1; d < threads; d *= 2) {
    sums = sums.map((sum, lid) => sum + (sums[lid ^ d] as number));
  }
  const sumBits = new Uint32Array(sums.buffer)[0] as number;
  return Uint32Array.from(ids.flatMap((lid) => [1, sumBits, (lid * (lid - 1)) / 2]));
}

/** Patterns of f16. */
export const HALVES_COUNT = 0x1_0000;

/** Every f16 as f32, by its pattern; 0 for what is no finite number. Grid [patterns / 256]. */
export const HALVES: Kernel = {
  name: "halves",
  params: {},
  bindings: { out: write("u32") },
  code: (lane) => /* wgsl */ `
${halfPair(lane)}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let pair = half_pair(id.x | ((id.x ^ 0x8000u) << 16u));
  let is_finite = (id.x & 0x7c00u) != 0x7c00u;
  out[id.x] = select(0u, bitcast<u32>(pair.x) + (bitcast<u32>(pair.y) >> 31u), is_finite);
}
`,
};

/** What {@link HALVES} writes: the bits of each number, and 1 more where the one beside it, of the other sign, is negative. */
export function halvesExpected(): Uint32Array {
  const values = Float32Array.from({ length: HALVES_COUNT }, (_, bits) => {
    const exponent = (bits >> 10) & 31;
    const magnitude = exponent === 0 ? (bits & 1023) * 2 ** -24 : (1024 + (bits & 1023)) * 2 ** (exponent - 25);
    return bits < 0x8000 ? magnitude : -magnitude;
  });
  return new Uint32Array(values.buffer).map((word, bits) => {
    return (bits & 0x7c00) === 0x7c00 ? 0 : word + (bits < 0x8000 ? 1 : 0);
  });
}
