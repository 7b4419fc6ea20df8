/** Help text for terminals. */

const columnCount = 80;

/**
 * The text in lines of at most 80 columns, cut between words; what goes on from a second column stays in it. A line of prose that is longer goes on
 * in the one behind it: where such lines end is their source's affair.
 */
export function foldHelp(text: string): string {
  const paragraphs: string[] = [];
  let goesOn = false;
  for (const line of text.split("\n")) {
    const isProse = /^\S/.test(line);
    if (goesOn && isProse) paragraphs[paragraphs.length - 1] += ` ${line}`;
    else paragraphs.push(line);
    goesOn = isProse && (goesOn || line.length > columnCount);
  }
  return paragraphs.flatMap(foldLine).join("\n");
}

function foldLine(line: string): string[] {
  if (line.length <= columnCount) return [line];
  const left = /^ +\S.*? {2,}/.exec(line)?.[0] ?? "";
  const lines = [left.trimEnd()];
  let isBegun = false;
  for (const word of line.slice(left.length).split(" ")) {
    const last = lines[lines.length - 1] ?? "";
    const longer = isBegun ? `${last} ${word}` : left + word;
    if (isBegun && longer.length > columnCount) lines.push(" ".repeat(left.length) + word);
    else lines[lines.length - 1] = longer;
    isBegun = true;
  }
  return lines;
}
