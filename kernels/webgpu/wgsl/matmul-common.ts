/**
 * What all kernels of products share: parameters, bindings, and which matrix a work group has.
 *
 * A dispatch multiplies the same rows by up to {@link MATRICES_MAX} matrices of one encoding and input width, each into a buffer of its own. The grid's x
 * counts through the work groups of the first, then of the second, and so on: a work group finds its own by its id, all of its threads go one way, and what
 * they do there is to the instruction what the kernel of one matrix does. Small matrices (keys and values beside queries) so fill a GPU together.
 */
import type { MatrixEncoding } from "../../contract.ts";
import { type Binding, type ParamType, read, write } from "../kernel.ts";

/** Matrices of one dispatch at most. */
export const MATRICES_MAX = 3;
/** Matrices of one dispatch. */
export type MatrixCount = 1 | 2 | 3;

/** Whether codes and scales are what is multiplied. */
export function hasScales(encoding: MatrixEncoding): encoding is "int8" | "int4" {
  return encoding === "int8" || encoding === "int4";
}

/** Storage buffers of a product by so many matrices. */
export function storageBuffersOf(encoding: MatrixEncoding, matrices: number): number {
  return hasScales(encoding) ? 2 + 3 * matrices : 1 + 2 * matrices;
}

const suffix = (index: number): string => (index === 0 ? "" : `_${index}`);
const indices = (matrices: MatrixCount): number[] => Array.from({ length: matrices }, (_, index) => index);

/** End of the name of a kernel. */
export const ofMatrices = (matrices: MatrixCount): string => (matrices === 1 ? "" : `_of_${matrices}`);

/**
 * Parameters of a product. One matrix: a part of it, whose `part_width` rows begin at column `out_first` of an output of `out_width`. Several, each of them
 * whole: `width` of each, and the `begin` of its work groups.
 */
export function matmulParams(matrices: MatrixCount): Readonly<Record<string, ParamType>> {
  const common = { rows: "u32", steps: "u32", accumulate: "u32" } as const;
  if (matrices === 1) return { ...common, out_width: "u32", out_first: "u32", part_width: "u32" };
  const own = indices(matrices).flatMap((n) => (n === 0 ? ["width_0"] : [`width_${n}`, `begin_${n}`]));
  return { ...common, ...Object.fromEntries(own.map((name) => [name, "u32"])) };
}

/** Bindings of a product: x, its scales, then of each matrix weights, scales and output; scales with int8 and int4. */
export function matmulBindings(encoding: MatrixEncoding, matrices: MatrixCount = 1): Record<string, Binding> {
  const isScaled = hasScales(encoding);
  const x: Record<string, Binding> = isScaled ? { x: read("vec4u"), x_scales: read("vec2u") } : { x: read("vec4f") };
  const own = indices(matrices).map((index): Record<string, Binding> => {
    const end = suffix(index);
    return {
      [`weights${end}`]: read(encoding === "f32" ? "vec4f" : "vec4u"),
      ...(isScaled ? { [`weight_scales${end}`]: read("f32") } : {}),
      [`out${end}`]: write("f32"),
    };
  });
  return Object.assign(x, ...own);
}

/** In `main`: the matrix of a work group. */
export const OWN = "  let own = own_matrix(wg.x);";

/**
 * `own_matrix(wg_x)`: which matrix a work group has, which of its work groups it is, and how many rows there are. `store(own, row, column, value)`: into
 * its output, or added to it.
 */
export function ownMatrix(matrices: MatrixCount): string {
  const find = indices(matrices)
    .slice(1)
    .reverse()
    .map((n) => `  if (wg_x >= p.begin_${n}) { return Own(${n}u, wg_x - p.begin_${n}, p.width_${n}); }`);
  const first = matrices === 1 ? "Own(0u, wg_x, p.part_width)" : "Own(0u, wg_x, p.width_0)";
  const at = matrices === 1 ? "row * p.out_width + p.out_first + column" : "row * own.width + column";
  const put = "if (p.accumulate != 0u) { out[at] = out[at] + value; } else { out[at] = value; }";
  return /* wgsl */ `
struct Own { index: u32, x: u32, width: u32 }
fn own_matrix(wg_x: u32) -> Own {
${find.join("\n")}
  return ${first};
}
fn store(own: Own, row: u32, column: u32, value: f32) {
  let at = ${at};
${everyMatrix(matrices, `  ${put}`)}
}
`;
}

/** What is said of the first matrix, for the one that a work group has. */
export function everyMatrix(matrices: MatrixCount, text: string): string {
  if (matrices === 1) return text;
  const branches = indices(matrices).map((index) => {
    const condition = index < matrices - 1 ? `if (own.index == ${index}u) ` : "";
    return `${condition}{\n${ofMatrix(index, text)}\n  }`;
  });
  return `  ${branches.join(" else ")}`;
}

/** What is said of the first matrix, for another one. */
export function ofMatrix(index: number, text: string): string {
  return text.replace(/\b(weights|weight_scales|out)\b/g, `$1${suffix(index)}`);
}
