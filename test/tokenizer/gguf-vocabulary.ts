/** Reads the vocabulary of a GGUF file and writes it as the tokenizer.json that HF's conversion of a Llama model would. */
interface Vocabulary {
  tokens: string[];
  scores: number[];
  types: number[];
}

const TYPE_CONTROL = 3;
const TYPE_USER_DEFINED = 4;

/** Parses GGUF v3 metadata (little-endian); tensors are not read. */
export function readGgufVocabulary(file: Uint8Array): Vocabulary {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const utf8 = new TextDecoder();
  let at = 16;
  /** Steps over `bytes` and returns where they begin. */
  const take = (bytes: number): number => {
    at += bytes;
    return at - bytes;
  };
  const u64 = (): number => Number(view.getBigUint64(take(8), true));
  const text = (): string => {
    const length = u64();
    const start = take(length);
    return utf8.decode(file.subarray(start, at));
  };
  const scalar = (type: number): unknown => {
    const start = take([1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][type] as number);
    if (type === 5) return view.getInt32(start, true);
    if (type === 6) return view.getFloat32(start, true);
    return undefined;
  };
  const value = (type: number): unknown => {
    if (type === 8) return text();
    if (type !== 9) return scalar(type);
    const itemType = view.getUint32(take(4), true);
    return Array.from({ length: u64() }, () => value(itemType));
  };
  const fields = new Map<string, unknown>();
  for (let count = u64(); count > 0; count--) {
    const key = text();
    fields.set(key, value(view.getUint32(take(4), true)));
  }
  return {
    tokens: fields.get("tokenizer.ggml.tokens") as string[],
    scores: fields.get("tokenizer.ggml.scores") as number[],
    types: fields.get("tokenizer.ggml.token_type") as number[],
  };
}

/** tokenizer.json of a SentencePiece BPE vocabulary with byte fallback. */
export function sentencePieceTokenizerJson({ tokens, scores, types }: Vocabulary): object {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const merges: { pair: [string, string]; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (types[id] !== 1) continue;
    for (let cut = 1; cut < token.length; cut++) {
      const pair: [string, string] = [token.slice(0, cut), token.slice(cut)];
      if (Object.hasOwn(vocab, pair[0]) && Object.hasOwn(vocab, pair[1]))
        merges.push({ pair, score: scores[id] as number });
    }
  }
  merges.sort((a, b) => b.score - a.score);
  const replace = (from: string, to: string) => ({ type: "Replace", pattern: { String: from }, content: to });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: tokens.flatMap((content, id) =>
      types[id] === TYPE_CONTROL || types[id] === TYPE_USER_DEFINED
        ? [{ id, content, special: true, normalized: false, lstrip: false, rstrip: false, single_word: false }]
        : [],
    ),
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace(" ", "▁")] },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        replace("▁", " "),
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      byte_fallback: true,
      vocab,
      merges: merges.map(({ pair }) => pair),
    },
  };
}
