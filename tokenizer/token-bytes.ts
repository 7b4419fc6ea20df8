/** Decoders of tokenizer.json that work token by token: what bytes a token of the vocabulary stands for. */
import { QuireError } from "../protocol/errors.ts";
import { tokenToBytes } from "./byte-alphabet.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";
import { prependScheme } from "./pre-tokenize.ts";

/** A compiled decoder. */
export interface Decoding {
  bytesOf(token: string): Uint8Array;
  /** One space at the very start of a decoded text is the model's own and left out. */
  dropsFirstSpace: boolean;
}

/**
 * Reads ByteLevel; or Replace, ByteFallback, Fuse, Strip of one leading space; or Metaspace; alone or in a Sequence.
 * @throws {QuireError} `internal` naming a decoder that is not supported.
 */
export function readDecoder(config: unknown): Decoding {
  const steps = flatten(config);
  const utf8 = new TextEncoder();
  if (steps.length === 1 && steps[0]?.type === "ByteLevel") {
    return { dropsFirstSpace: false, bytesOf: (token) => tokenToBytes(token) ?? utf8.encode(token) };
  }
  const replacements: [string, string][] = [];
  let byteFallback = false;
  let dropsFirstSpace = false;
  for (const step of steps) {
    const pattern = isObject(step.pattern) ? step.pattern.String : undefined;
    if (step.type === "Replace" && typeof pattern === "string") {
      replacements.push([pattern, String(step.content)]);
    } else if (step.type === "Metaspace") {
      replacements.push([String(step.replacement), " "]);
      dropsFirstSpace = prependScheme(step) !== "never";
    } else if (step.type === "ByteFallback") {
      byteFallback = true;
    } else if (step.type === "Strip" && step.content === " " && step.start === 1 && step.stop === 0) {
      dropsFirstSpace = true;
    } else if (step.type !== "Fuse") {
      throw new QuireError("internal", `tokenizer.json: decoder ${step.type} is not supported`);
    }
  }
  return {
    dropsFirstSpace,
    bytesOf: (token) => {
      const byte = byteFallback ? byteOfToken(token) : undefined;
      if (byte !== undefined) return Uint8Array.of(byte);
      return utf8.encode(replacements.reduce((text, [from, to]) => text.replaceAll(from, to), token));
    },
  };
}

/** The byte that a token like `<0xE2>` is for, or undefined. */
export function byteOfToken(token: string): number | undefined {
  const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
  return byte === null ? undefined : Number.parseInt(byte[1] as string, 16);
}

function flatten(config: unknown): JsonObject[] {
  const decoder = asObject(config, "tokenizer.json: decoder");
  if (decoder.type !== "Sequence") return [decoder];
  return asArray(decoder.decoders, "tokenizer.json: decoders").flatMap(flatten);
}
