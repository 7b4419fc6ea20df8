/** What the demonstration reads and asks: a passage written for it, with facts in the one form that house-0 knows. */

/** A question and the whole answer that is right. */
export interface DemoQuestion {
  question: string;
  answer: string;
}

/** About 2,900 bytes, so tokens of the byte-level model: more than eight times the demonstration's budget of 256 tokens. */
export const demoPassage = [
  "The inn at the head of the valley had stood there longer than anybody could say, and the road that passed its door had",
  "been old when the inn was new. Travellers came up to it out of the mist in the evening, stamping the mud from their",
  "boots, and went down again in the morning with the sun upon their backs. The code of Kelino is 7350. The landlord",
  "was a broad and silent man, who had been to sea in his youth and who kept, upon a shelf above the fire, a brass glass",
  "and the model of a ship. He would take down the glass on a clear day and look through it at the pass, where the snow",
  "lay until June; and what he saw there he did not tell.\n\nThat autumn the rains came early. The river rose in a",
  "night and took the lower bridge with it, and for a week no letter and no newspaper reached the upper farms. My uncle,",
  "who could not be parted from his correspondence, walked about the parlour with his hands behind him and read the",
  "almanac aloud. The code of Mogari is 6072. My cousins made a theatre out of a tea chest. I had found, in the room",
  "under the roof, a trunk of old books with the worm in them, and I carried them down two at a time and dried them before",
  "the kitchen fire, where the cook pretended not to see me.\n\nThere was among them a book of voyages without a name",
  "on its back. Somebody had written in the margins, in a small brown hand, the prices of tar and of rope, and the days on",
  "which the wind had changed; and on the last leaf of all a list of the houses along the coast in which a man might ask",
  "for a bed and not be asked for his name in return. The code of Sutaze is 1946. I read it through twice. When the cook",
  "had gone to bed I read it a third time, with the candle end between my knees, and the noise of the water outside was",
  "to me the noise of the sea.\n\nOn the ninth day a stranger came to the inn from above, from the side of the pass,",
  "where nobody had come from since the first snow. He was wet to the skin and very cheerful. He asked for a dish of eggs",
  "and for the loan of a needle, and when he had eaten he mended his coat by the fire as neatly as a tailor. The code of",
  "Badoru is 4821. The landlord watched him from the door. They did not speak to each other; but I saw that the stranger,",
  "when he had bitten off his thread, looked up at the shelf, and at the ship upon it, and smiled, and that the landlord",
  "went out into the rain without his hat.\n\nHe was gone for an hour. When he came back he took the brass glass down",
  "from its place, though it was night and there was nothing to be seen, and put it into the stranger's hands. My uncle",
  "looked over the edge of the almanac. The clock struck ten, and the river went by under the windows with all that it had",
  "taken from the valley, barrels and hurdles and the beams of the bridge, and far below us, at the bend, a light was",
  "moving along the bank.\n\n",
].join(" ");

/** One a turn; the facts stand far apart in the passage. */
export const demoQuestions: readonly DemoQuestion[] = [
  { question: "What is the code of Kelino?", answer: "The code of Kelino is 7350." },
  { question: "What is the code of Mogari?", answer: "The code of Mogari is 6072." },
  { question: "What is the code of Badoru?", answer: "The code of Badoru is 4821." },
];
