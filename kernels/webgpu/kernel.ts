/** What a WGSL kernel is on the host: its parameters, its bindings, and the source that the device compiles. */
import { assert } from "../../protocol/assert.ts";

/** Types of a kernel's parameters; each takes 4 bytes of the uniform buffer. */
export type ParamType = "u32" | "i32" | "f32";

/** One storage buffer of a kernel. */
export interface Binding {
  /** WGSL type of the whole binding, as `array<f32>`. */
  type: string;
  access: "read" | "write";
}

/**
 * A kernel: one compute entry point `main`. Its code reads parameters as `p.<name>` and bindings by name; both are declared for it, in this
 * order. `p.zero` is always 0, and unknown to the compiler: see `rounded` in exact-math.ts.
 */
export interface Kernel {
  /** Unique, also among variants: pipelines are kept by it. */
  name: string;
  params: Readonly<Record<string, ParamType>>;
  bindings: Readonly<Record<string, Binding>>;
  /** A function: what it says depends on what the GPU can. */
  code: string | ((lane: Lane) => string);
  /** WGSL extensions that it needs whatever the lane. */
  extensions?: readonly string[];
}

/** What one variant of a kernel is told from another by. */
type VariantKey = string | number | boolean | undefined;

/** Variants by the arguments that are left. */
interface VariantTree {
  kernel?: Kernel;
  next: Map<VariantKey, VariantTree>;
}

/** A function that makes each variant of a kernel once: ops ask for theirs hundreds of times a step, and its text is long. */
export function variants<Keys extends VariantKey[]>(make: (...keys: Keys) => Kernel): (...keys: Keys) => Kernel {
  const all: VariantTree = { next: new Map() };
  return (...keys) => {
    let tree = all;
    for (const key of keys) {
      let next = tree.next.get(key);
      if (next === undefined) {
        next = { next: new Map() };
        tree.next.set(key, next);
      }
      tree = next;
    }
    tree.kernel ??= make(...keys);
    return tree.kernel;
  };
}

/** A binding that a kernel reads, of elements of a type. */
export const read = (element: string): Binding => ({ type: `array<${element}>`, access: "read" });
/** A binding that a kernel writes, and may read. */
export const write = (element: string): Binding => ({ type: `array<${element}>`, access: "write" });

/**
 * What kernels may use of a GPU; see features.ts. All lanes give the same bits.
 */
export interface Lane {
  /** `simulated`: subgroups of this size by way of work group memory, for tests of sizes that the GPU at hand has not. */
  subgroups: "none" | "native" | { simulated: number };
  /** f16 in shaders, else two to a word. */
  hasF16: boolean;
  /** Subgroup matrices for products of many rows. */
  matrix?: MatrixShape;
}

/** Subgroup matrices of f16 that add up in f32: `m` rows of the input, `n` of the matrix, `k` inputs. */
export interface MatrixShape {
  m: number;
  n: number;
  k: number;
  /** For tests: by plain arithmetic. */
  isSimulated?: boolean;
}

/** Nothing optional. */
export const PLAIN_LANE: Lane = { subgroups: "none", hasF16: false };

/** Bytes from one dispatch's parameters to the next: the alignment of dynamic offsets that every adapter grants. */
export const PARAMS_STRIDE = 256;

/** The complete WGSL of a kernel. */
export function shaderSource({ params, bindings, code, extensions = [] }: Kernel, lane: Lane): string {
  const fields = [...Object.entries(params), ["zero", "u32"]].map(([name, type]) => `  ${name}: ${type},`);
  const buffers = Object.entries(bindings).map(([name, { type, access }], index) => {
    const mode = access === "read" ? "read" : "read_write";
    return `@group(0) @binding(${index + 1}) var<storage, ${mode}> ${name}: ${type};`;
  });
  const uniforms = ["struct Params {", ...fields, "}", "@group(0) @binding(0) var<uniform> p: Params;"];
  const ofLane = [...(lane.subgroups === "native" ? ["subgroups"] : []), ...(lane.hasF16 ? ["f16"] : [])];
  const enabled = new Set([...(typeof code === "string" ? [] : ofLane), ...extensions]);
  const text = typeof code === "string" ? code : code(lane);
  return [...[...enabled].map((name) => `enable ${name};`), ...uniforms, ...buffers, text].join("\n");
}

/** A kernel's parameters in order, as they are written hundreds of times a step. */
export type ParamFields = readonly { name: string; isFloat: boolean }[];

/** @throws {AssertionError} for more than a dispatch has room for. */
export function paramFields({ name, params }: Kernel): ParamFields {
  const fields = Object.entries(params).map(([field, type]) => ({ name: field, isFloat: type === "f32" }));
  assert((fields.length + 1) * 4 <= PARAMS_STRIDE, `kernel ${name} has too many parameters`);
  return fields;
}

/** Writes a dispatch's parameters, and the zero behind them, from word `at` on; `words` and `floats` are views of one memory. */
export function writeParams(
  fields: ParamFields,
  values: Readonly<Record<string, number>>,
  { words, floats }: { words: Uint32Array; floats: Float32Array },
  at: number,
): void {
  let place = at;
  for (const { name, isFloat } of fields) {
    const value = values[name];
    if (value === undefined) assert(false, `a dispatch lacks the parameter ${name}`);
    if (isFloat) floats[place] = value;
    else words[place] = value;
    place += 1;
  }
  words[place] = 0;
}
