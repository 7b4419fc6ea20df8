/** Listens to what a command of this process writes. */
import { vi } from "vitest";

/** What is written to a stream while `run` runs; it does not arrive there. */
export async function captured(stream: NodeJS.WriteStream, run: () => Promise<unknown>): Promise<string> {
  let text = "";
  const write = vi.spyOn(stream, "write").mockImplementation((chunk) => {
    text += String(chunk);
    return true;
  });
  try {
    await run();
  } finally {
    write.mockRestore();
  }
  return text;
}
