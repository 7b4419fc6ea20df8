/** house-0's vocabulary with a few merged tokens: text has more than one way to be written in ids, as in real models. */
import tokenizerJson from "../../weights/house-0/tokenizer.json?raw";

/** Ids of the merged tokens by their text. */
export const MERGED = { ab: 260, abc: 261, "\nS": 262, "x\n": 263, TO: 264, "P!": 265 } as const;

/** The merged tokenizer.json. */
export function mergedTokenizerJson(): string {
  const json = JSON.parse(tokenizerJson) as { model: { vocab: Record<string, number>; merges: string[][] } };
  // Byte-level vocabularies write a line break as this letter.
  const written = (text: string) => text.replaceAll("\n", "Ċ");
  for (const [text, id] of Object.entries(MERGED)) json.model.vocab[written(text)] = id;
  json.model.merges = [
    ["a", "b"],
    ["ab", "c"],
    ["Ċ", "S"],
    ["x", "Ċ"],
    ["T", "O"],
    ["P", "!"],
  ];
  return JSON.stringify(json);
}
