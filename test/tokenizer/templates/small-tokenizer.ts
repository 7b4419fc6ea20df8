/** A tokenizer for templates: real ones are large, and other people's. */

interface TokenizerJson {
  added_tokens: object[];
  model: { vocab: Record<string, number>; merges: string[][] };
}

/**
 * Merges that can reach over the borders between template, contents and replies: line breaks and spaces. None joins a line break
 * and a letter: pre-tokenizers of real models keep those apart, and behind a prompt that ends a line the border stays.
 */
const MERGES = [
  ["Ċ", "Ċ"],
  ["Ġ", "a"],
  ["a", "n"],
  ["an", "s"],
  ["Ġ", "Ġ"],
  ["t", "h"],
  ["i", "n"],
  ["th", "in"],
] as const;

/** Below are house-0's bytes and special tokens. */
const FIRST_ID = 260;

/**
 * A tokenizer.json with the bytes of house-0's (`houseJson`), a few merges, the family's special tokens, and Qwen3's two tokens
 * for thoughts, which are no special ones.
 */
export function smallTokenizer(houseJson: string, family: { name: string; specials: readonly string[] }): unknown {
  const json = JSON.parse(houseJson) as TokenizerJson;
  let id = FIRST_ID;
  for (const [left, right] of MERGES) json.model.vocab[left + right] = id++;
  json.model.merges = MERGES.map((pair) => [...pair]);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const thoughts = family.name === "qwen3" ? ["<think>", "</think>"] : [];
  json.added_tokens = [...family.specials, ...thoughts].map((content) => ({
    id: id++,
    content,
    ...flags,
    special: !thoughts.includes(content),
  }));
  return json;
}
