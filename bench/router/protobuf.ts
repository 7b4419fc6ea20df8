/** Writes ONNX models by hand: the few forms of protobuf (onnx.proto3) that a small graph needs. */

/** A length-delimited field. */
export function field(id: number, bytes: Uint8Array): Uint8Array {
  return join([varint((id << 3) | 2), varint(bytes.byteLength), bytes]);
}

/** An integer field; not negative. */
export function number(id: number, value: number): Uint8Array {
  return join([varint(id << 3), varint(value)]);
}

/** A whole number in as few bytes as it takes; not negative. */
export function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Uint8Array.from([...bytes, rest]);
    bytes.push((rest % 128) | 128);
  }
}

/** UTF-8. */
export function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

/** One behind the other. */
export function join(parts: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat(parts);
}

/** ONNX's ValueInfoProto; `type` is its number of an element type. `shape` undefined: onnxruntime infers it. */
export function valueInfo(name: string, type: number, shape: readonly number[] | undefined): Uint8Array {
  const dims = shape && field(2, join(shape.map((size) => field(1, number(1, size)))));
  const tensor = join([number(1, type), ...(dims ? [dims] : [])]);
  return join([field(1, text(name)), field(2, field(1, tensor))]);
}
