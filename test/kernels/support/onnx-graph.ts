/**
 * Builds and runs one small ONNX graph with onnxruntime's WebAssembly backend: numbers that share no code with any device. The model is
 * written as protobuf by hand (onnx.proto3); everything that a graph needs is fed to it, so there are no initializers.
 */
import { InferenceSession, env as ortEnv, Tensor } from "onnxruntime-web";
import { field, join, number, text, valueInfo, varint } from "../../../bench/router/protobuf.ts";

/** A tensor that goes in. */
export interface OnnxInput {
  shape: readonly number[];
  data: Float32Array | Int32Array | BigInt64Array;
}

/** One operator. `attributes`: integers are INT, lists of integers INTS, `{ float }` is FLOAT. */
export interface OnnxNode {
  op: string;
  /** "" is ONNX's own operator set, the other one onnxruntime's. */
  domain?: "" | "com.microsoft";
  /** Empty for an optional input that is left out. */
  inputs: readonly string[];
  outputs: readonly string[];
  attributes?: Readonly<Record<string, number | readonly number[] | { float: number }>>;
}

/** A graph with the values of its inputs. */
export interface OnnxGraph {
  inputs: Readonly<Record<string, OnnxInput>>;
  nodes: readonly OnnxNode[];
  /** Names of f32 results. */
  outputs: readonly string[];
}

const IR_VERSION = 10;
const OPSET_VERSION = 21;
const ELEMENT_TYPES = { float32: 1, int32: 6, int64: 7 } as const;

/**
 * Runs a graph on one thread, offline.
 * @throws {Error} onnxruntime's own, for a graph that it does not understand
 */
export async function runOnnx(graph: OnnxGraph): Promise<Record<string, Float32Array>> {
  ortEnv.wasm.numThreads = 1;
  const session = await InferenceSession.create(modelBytes(graph), {
    executionProviders: ["wasm"],
    // It warns where its own shape inference of a cache is off.
    logSeverityLevel: 3,
  });
  try {
    const feeds = Object.entries(graph.inputs).map(([name, { data, shape }]) => [
      name,
      new Tensor(elementType(data), data, shape),
    ]);
    const results = await session.run(Object.fromEntries(feeds));
    return Object.fromEntries(
      graph.outputs.map((name) => {
        const data = results[name]?.data;
        if (!(data instanceof Float32Array)) throw new TypeError(`${name} is not f32`);
        return [name, data.slice()];
      }),
    );
  } finally {
    await session.release();
  }
}

function elementType(data: OnnxInput["data"]): keyof typeof ELEMENT_TYPES {
  if (data instanceof Float32Array) return "float32";
  return data instanceof Int32Array ? "int32" : "int64";
}

function modelBytes({ inputs, nodes, outputs }: OnnxGraph): Uint8Array {
  const graph = [
    ...nodes.map((node) => field(1, nodeBytes(node))),
    field(2, text("graph")),
    ...Object.entries(inputs).map(([name, { data, shape }]) =>
      field(11, valueInfo(name, ELEMENT_TYPES[elementType(data)], shape)),
    ),
    ...outputs.map((name) => field(12, valueInfo(name, ELEMENT_TYPES.float32, undefined))),
  ];
  const opset = (domain: string, version: number) => field(8, join([field(1, text(domain)), number(2, version)]));
  return join([number(1, IR_VERSION), field(7, join(graph)), opset("", OPSET_VERSION), opset("com.microsoft", 1)]);
}

function nodeBytes({ op, domain = "", inputs, outputs, attributes = {} }: OnnxNode): Uint8Array {
  return join([
    ...inputs.map((name) => field(1, text(name))),
    ...outputs.map((name) => field(2, text(name))),
    field(4, text(op)),
    ...Object.entries(attributes).map(([name, value]) => field(5, attributeBytes(name, value))),
    field(7, text(domain)),
  ]);
}

function attributeBytes(name: string, value: NonNullable<OnnxNode["attributes"]>[string]): Uint8Array {
  const named = field(1, text(name));
  if (typeof value === "number") return join([named, number(3, value), number(20, 2)]);
  if ("float" in value) {
    const bytes = new Uint8Array(Float32Array.of(value.float).buffer);
    return join([named, varint((2 << 3) | 5), bytes, number(20, 1)]);
  }
  return join([named, ...value.map((each) => number(8, each)), number(20, 7)]);
}
