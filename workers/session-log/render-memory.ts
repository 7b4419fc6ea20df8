/** What the end of the log looked like when it was rendered: the next turn need not render the whole transcript again to know what the log stands for. */
import { LIMITS } from "../../protocol/limits.ts";

/** The last rendered text, by its hash; a long one is not kept, it is rendered again. */
export class RenderMemory {
  #hash = "";
  #text = "";

  /** @param hash SHA-256 of `text`, as the log has it */
  keep(hash: string, text: string): void {
    const isKept = text.length <= LIMITS.renderMemoryCharsMax;
    this.#hash = isKept ? hash : "";
    this.#text = isKept ? text : "";
  }

  /** Of what is kept. */
  get bytes(): number {
    return 2 * this.#text.length;
  }

  /** The text of that hash, where it is the last one. */
  find(hash: string): string | undefined {
    return this.#hash !== "" && this.#hash === hash ? this.#text : undefined;
  }
}
