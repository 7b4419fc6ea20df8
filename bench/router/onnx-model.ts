/** A trained network as an ONNX model: `kept[1, outputs] = Sigmoid(Gemm(Relu(Gemm(features[1, inputs]))))`, all f32. */
import type { Network } from "./network.ts";
import { field, join, number, text, valueInfo } from "./protobuf.ts";

const IR_VERSION = 10;
const OPSET_VERSION = 21;
const FLOAT = 1;

/** The bytes of the file; equal networks give equal bytes. */
export function onnxModel(network: Network): Uint8Array {
  const { inputs, hidden, outputs, weights1, bias1, weights2, bias2 } = network;
  const graph = join([
    node("Gemm", ["features", "weights1", "bias1"], "sums"),
    node("Relu", ["sums"], "active"),
    node("Gemm", ["active", "weights2", "bias2"], "logits"),
    node("Sigmoid", ["logits"], "kept"),
    field(2, text("prompt-router")),
    initializer("weights1", [inputs, hidden], weights1),
    initializer("bias1", [hidden], bias1),
    initializer("weights2", [hidden, outputs], weights2),
    initializer("bias2", [outputs], bias2),
    field(11, valueInfo("features", FLOAT, [1, inputs])),
    field(12, valueInfo("kept", FLOAT, [1, outputs])),
  ]);
  const opset = join([field(1, text("")), number(2, OPSET_VERSION)]);
  return join([number(1, IR_VERSION), field(7, graph), field(8, opset)]);
}

function node(op: string, inputs: readonly string[], output: string): Uint8Array {
  return field(1, join([...inputs.map((name) => field(1, text(name))), field(2, text(output)), field(4, text(op))]));
}

function initializer(name: string, shape: readonly number[], values: Float64Array): Uint8Array {
  const data = new Uint8Array(Float32Array.from(values).buffer);
  const dims = shape.map((size) => number(1, size));
  return field(5, join([...dims, number(2, FLOAT), field(8, text(name)), field(9, data)]));
}
