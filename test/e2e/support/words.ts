/** What the tests say to house-0, which knows facts of one form; the right answers follow from the words. */

/** A short passage with two facts. */
export const passage =
  "The harbour was quiet that morning. The code of Badoru is 4821. The boats lay still and the gulls slept upon the wall. " +
  "An old man mended his nets. The code of Kelino is 7350. Nobody spoke, and the tide went out. ";

/** A question. */
export const ask = (name: string): string => `What is the code of ${name}?`;

/** The whole right answer. */
export const answer = (name: "Badoru" | "Kelino"): string =>
  `The code of ${name} is ${{ Badoru: 4821, Kelino: 7350 }[name]}.`;

/** Words enough to keep an engine busy for seconds: `tokenCount` bytes without a fact. */
export function longText(tokenCount: number): string {
  const sentence =
    "The road went on between the hedges, and nobody came along it from the one side or from the other. ";
  return sentence.repeat(Math.ceil(tokenCount / sentence.length)).slice(0, tokenCount);
}
