/** Texts that tokenizers find hard: scripts, emoji, white space and code, mixed by a seed. */

const FRAGMENTS: readonly string[] = [
  ..."the The of and to in code Badoru is 4821 don't WE'LL I'm it's 's 'S ’s they'RE _a_ HTTPServer camelCase".split(
    " ",
  ),
  ..." the| of| and| code| a| I|, |. |; |: |! |? |...| - |--|1,000|3.14|2026-11-22|0x7f| 42| 100%|$5|€|#|@".split("|"),
  ...'foo(bar)|=> {}|();\n|// note|    return x;\n|if (a < b && c > d) {\n|}\n\n|\t\t|/* */|<div>|</a>|\\n|&amp;|"key": ['.split(
    "|",
  ),
  ...["  ", "   ", "\n", "\n\n", "\r\n", " \n ", "\t", "\u00a0", "\u3000", "\u2028", " \u2009", "    \n    "],
  ...[
    "é",
    "e\u0301",
    "ﬁ",
    "Å",
    "A\u030a",
    "ß",
    "İ",
    "Ǆ",
    "Привет",
    " мир",
    "ΟΔΟΣ",
    "مرحبا",
    "שלום",
    "ไทย",
    "한국어",
    "안녕",
  ],
  ...["漢字", "かな", "カナ", "ｶﾞ", "。", "、", "「", "中文分词", "क्षि", "தமிழ்", "ქართული", "አማርኛ", "Việt", "ẹ́"],
  ...[
    "😀",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "👍🏽",
    "❤️",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "𝟘𝟙",
    "𐐷",
    "½",
    "²",
    "Ⅷ",
    "٣٤",
    "\u0000",
    "\u200d",
    "\ufffd",
    "▁",
    "▁▁",
    "\u0344",
  ],
];

/** Numbers in [0, 1) from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Texts of up to 400 fragments, `charCount` UTF-16 units in all or a little more. Well-formed; without U+FEFF and U+0085, about
 * which the JavaScript reference is wrong, and without characters that marks are written in.
 */
export function mixedTexts(seed: number, charCount: number): string[] {
  const random = randomOf(seed);
  const below = (count: number): number => Math.floor(random() * count);
  const texts: string[] = [];
  for (let total = 0; total < charCount; ) {
    let text = "";
    const favourite = FRAGMENTS[below(FRAGMENTS.length)] as string;
    for (let count = 1 + below(random() < 0.1 ? 400 : 24); count > 0; count--) {
      const kind = random();
      if (kind < 0.7) text += FRAGMENTS[below(FRAGMENTS.length)];
      else if (kind < 0.75) text += favourite;
      else if (kind < 0.9) text += String.fromCharCode(0x20 + below(0x5f));
      else if (kind < 0.96) text += String.fromCharCode(0xa0 + below(0x500));
      else text += String.fromCodePoint(0x900 + below(0x2b000));
      if (random() < 0.4) text += " ";
    }
    text = text.toWellFormed().replace(/[\ufeff\u0085\ufdd0-\ufddf]/g, "");
    texts.push(text);
    total += text.length;
  }
  return texts;
}
