/**
 * Loops that reach what WebAssembly can reach on a machine: reading memory, int8 products, f32 multiply-adds. AssemblyScript, compiled when
 * it is needed; nothing of the engine is in it, so it stays a yardstick.
 */

/** The part of AssemblyScript's compiler that is used. */
interface Compiler {
  main(
    options: string[],
    files: {
      readFile(name: string): string | null;
      writeFile(name: string, contents: string | Uint8Array): void;
      listFiles(folder: string): string[];
    },
  ): Promise<{ error: Error | null; stderr: { toString(): string } }>;
}

/** A name, not a literal: the compiler's own declarations replace `console` and more for the whole project. */
const compilerModule: string = "assemblyscript/asc";

/** Exports of the compiled loops; `rounds` is how often. Each returns something that depends on all of its work. */
export interface LimitLoops {
  memory: WebAssembly.Memory;
  /** Reads `bytes` bytes, a multiple of 256, from address `at` on. */
  read(at: number, bytes: number): number;
  /** 8 * 32 operations a round: products of signed 8-bit with 7-bit values, added in 32 bits. */
  multiplyInt8(rounds: number): number;
  /** 8 * 8 operations a round: fused multiply-adds. */
  multiplyF32(rounds: number): number;
}

/** Operations of one round of each loop. */
export const ROUND_OPS = { multiplyInt8: 8 * 32, multiplyF32: 8 * 8 } as const;

const names = ["a", "b", "c", "d", "e", "f", "g", "h"];
const each = (line: (name: string, index: number) => string) => names.map(line).join("\n");
const sum = (add: string) => names.slice(1).reduce((left, right) => `${add}(${left}, ${right})`, "a");

const source = `
export function read(from: usize, bytes: usize): i32 {
  ${each((name) => `let ${name} = i32x4.splat(0);`)}
  for (let at = from, end = from + bytes; at < end; at += 256) {
    ${each((name, i) => `${name} = v128.xor(${name}, v128.xor(v128.load(at, ${i * 32}), v128.load(at, ${i * 32 + 16})));`)}
  }
  return i32x4.extract_lane(${sum("v128.xor")}, 0);
}
export function multiplyInt8(rounds: i32): i32 {
  ${each((name, i) => `let ${name} = i32x4.splat(${i});`)}
  let x = v128.load(0), y = v128.load(16);
  for (let round = 0; round < rounds; round++) {
    ${each((name) => `${name} = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, y, ${name});`)}
  }
  return i32x4.extract_lane(${sum("i32x4.add")}, 0);
}
export function multiplyF32(rounds: i32): f32 {
  ${each((name, i) => `let ${name} = f32x4.splat(${i});`)}
  let x = v128.load(0), y = v128.load(16);
  for (let round = 0; round < rounds; round++) {
    ${each((name) => `${name} = f32x4.relaxed_madd(x, y, ${name});`)}
  }
  return f32x4.extract_lane(${sum("f32x4.add")}, 0);
}
`;

/** Compiles the loops. @throws {Error} when the compiler refuses, which is a defect of this file. */
export async function compileLimitLoops(): Promise<Uint8Array<ArrayBuffer>> {
  const { default: asc } = (await import(compilerModule)) as { default: Compiler };
  let binary: Uint8Array<ArrayBuffer> | undefined;
  const features = ["simd", "relaxed-simd"].flatMap((feature) => ["--enable", feature]);
  const { error, stderr } = await asc.main(
    [..."loops.ts --outFile loops.wasm --runtime stub --optimizeLevel 3 --initialMemory 1".split(" "), ...features],
    {
      readFile: (name) => (name === "loops.ts" ? source : null),
      writeFile: (name, contents) => {
        if (name === "loops.wasm" && typeof contents !== "string") binary = Uint8Array.from(contents);
      },
      listFiles: () => [],
    },
  );
  if (error !== null || binary === undefined) throw new Error(`asc: ${error?.message}\n${stderr.toString()}`);
  return binary;
}
