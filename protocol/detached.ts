/**
 * A copy of a text in memory of its own, to be kept. A piece that was cut out of another text keeps all of that (V8's sliced strings; also what msgpackr
 * reads, by up to 255 bytes), and one that was put together keeps its parts.
 */
export function detached(text: string): string {
  return JSON.parse(JSON.stringify(text)) as string;
}
