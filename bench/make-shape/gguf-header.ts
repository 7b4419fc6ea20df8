/** The part of a GGUF file in front of its tensors: version 3, Llama, with a vocabulary that is only good for being loaded. */
import type { ModelConfig } from "../../models/contract.ts";
import { Q8_BLOCK_BYTES } from "./encode-rows.ts";
import { CODES_PER_BLOCK, type SeededTensor } from "./seeded-weights.ts";

const ALIGNMENT = 32;
const TYPE = { u32: 4, i32: 5, f32: 6, string: 8, array: 9 } as const;
const GGML_F32 = 0;
const GGML_Q8_0 = 8;
/** llama.cpp's file type "mostly Q8_0". */
const FILE_TYPE_Q8_0 = 7;
/** Kinds of tokens: unknown, control, byte, normal. */
const TOKEN = { normal: 1, unknown: 2, control: 3, byte: 6 } as const;

/** Bytes that grow. */
class Bytes {
  #buffer = Buffer.alloc(1 << 16);
  #length = 0;

  u32(value: number): void {
    this.#room(4);
    this.#length = this.#buffer.writeUInt32LE(value, this.#length);
  }

  u64(value: number): void {
    this.#room(8);
    this.#length = this.#buffer.writeBigUInt64LE(BigInt(value), this.#length);
  }

  f32(value: number): void {
    this.#room(4);
    this.#length = this.#buffer.writeFloatLE(value, this.#length);
  }

  string(text: string): void {
    const bytes = Buffer.from(text);
    this.u64(bytes.length);
    this.#room(bytes.length);
    this.#length += bytes.copy(this.#buffer, this.#length);
  }

  padded(): Uint8Array {
    this.#room(ALIGNMENT);
    const length = Math.ceil(this.#length / ALIGNMENT) * ALIGNMENT;
    return this.#buffer.subarray(0, length);
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#buffer.length) return;
    const larger = Buffer.alloc(Math.max(2 * this.#buffer.length, this.#length + bytes));
    this.#buffer.copy(larger);
    this.#buffer = larger;
  }
}

/** Bytes of a tensor in the file, without what aligns the next one. */
export function ggufTensorBytes({ shape, scaleExponent }: SeededTensor): number {
  const values = shape.reduce((a, b) => a * b, 1);
  return scaleExponent === undefined ? values * 4 : (values / CODES_PER_BLOCK) * Q8_BLOCK_BYTES;
}

/** Bytes from one tensor's start to the next one's. */
export function alignedBytes(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** Header, metadata and tensor table, padded to where the first tensor starts; tensors follow in the order given, each aligned. */
export function ggufHeader(config: ModelConfig, tensors: readonly SeededTensor[], name: string): Uint8Array {
  const bytes = new Bytes();
  const metadata = [...modelMetadata(config, name), ...vocabularyMetadata(config.vocabularySize)];
  bytes.u32(0x46554747);
  bytes.u32(3);
  bytes.u64(tensors.length);
  bytes.u64(metadata.length);
  for (const write of metadata) write(bytes);
  let offset = 0;
  for (const tensor of tensors) {
    bytes.string(tensor.ggufName);
    bytes.u32(tensor.shape.length);
    for (const size of tensor.shape.toReversed()) bytes.u64(size);
    bytes.u32(tensor.scaleExponent === undefined ? GGML_F32 : GGML_Q8_0);
    bytes.u64(offset);
    offset += alignedBytes(ggufTensorBytes(tensor));
  }
  return bytes.padded();
}

type Write = (bytes: Bytes) => void;

function value(key: string, type: keyof typeof TYPE, write: Write): Write {
  return (bytes) => {
    bytes.string(key);
    bytes.u32(TYPE[type]);
    write(bytes);
  };
}

function list(key: string, type: keyof typeof TYPE, writes: readonly Write[]): Write {
  return value(key, "array", (bytes) => {
    bytes.u32(TYPE[type]);
    bytes.u64(writes.length);
    for (const write of writes) write(bytes);
  });
}

function modelMetadata(config: ModelConfig, name: string): Write[] {
  const text = (key: string, content: string) => value(key, "string", (bytes) => bytes.string(content));
  const count = (key: string, number: number) => value(key, "u32", (bytes) => bytes.u32(number));
  const real = (key: string, number: number) => value(key, "f32", (bytes) => bytes.f32(number));
  return [
    text("general.architecture", "llama"),
    text("general.name", name),
    count("general.file_type", FILE_TYPE_Q8_0),
    count("general.quantization_version", 2),
    count("llama.context_length", config.contextTokensMax),
    count("llama.embedding_length", config.width),
    count("llama.block_count", config.layerCount),
    count("llama.feed_forward_length", config.ffnWidth),
    count("llama.attention.head_count", config.headCount),
    count("llama.attention.head_count_kv", config.kvHeadCount),
    count("llama.attention.key_length", config.headDim),
    count("llama.attention.value_length", config.headDim),
    count("llama.rope.dimension_count", config.headDim),
    count("llama.vocab_size", config.vocabularySize),
    real("llama.attention.layer_norm_rms_epsilon", config.normEps),
    real("llama.rope.freq_base", config.ropeTheta),
  ];
}

/** SentencePiece: unknown, begin, end, the 256 bytes, then words that no text has. */
function vocabularyMetadata(vocabularySize: number): Write[] {
  const special = ["<unk>", "<s>", "</s>"];
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  const words = Array.from({ length: vocabularySize - special.length - bytes.length }, (_, i) => `\u2581w${i}`);
  const tokens = [...special, ...bytes, ...words];
  const kindOf = (id: number) => {
    if (id === 0) return TOKEN.unknown;
    if (id < special.length) return TOKEN.control;
    return id < special.length + bytes.length ? TOKEN.byte : TOKEN.normal;
  };
  return [
    value("tokenizer.ggml.model", "string", (out) => out.string("llama")),
    list(
      "tokenizer.ggml.tokens",
      "string",
      tokens.map((token) => (out) => out.string(token)),
    ),
    list(
      "tokenizer.ggml.scores",
      "f32",
      tokens.map((_, id) => (out) => out.f32(-id)),
    ),
    list(
      "tokenizer.ggml.token_type",
      "i32",
      tokens.map((_, id) => (out) => out.u32(kindOf(id))),
    ),
    value("tokenizer.ggml.unknown_token_id", "u32", (out) => out.u32(0)),
    value("tokenizer.ggml.bos_token_id", "u32", (out) => out.u32(1)),
    value("tokenizer.ggml.eos_token_id", "u32", (out) => out.u32(2)),
  ];
}
