/**
 * UTF-8 to text in pieces, as the WHATWG Encoding Standard decodes ("maximal subpart" replacement, BOM kept): the outputs
 * joined equal `new TextDecoder("utf-8", {ignoreBOM: true}).decode(all)`. Written out because streaming `TextDecoder`s of
 * different runtimes disagree at borders.
 */
export class Utf8Decoder {
  #codePoint = 0;
  #needed = 0;
  #lower = 0x80;
  #upper = 0xbf;

  /** Text that is complete after `bytes`; an incomplete character waits for the next call. */
  push(bytes: ArrayLike<number>): string {
    let text = "";
    for (let index = 0; index < bytes.length; index++) text += this.#step(bytes[index] as number);
    return text;
  }

  /** U+FFFD when a character was left incomplete, else nothing. The decoder is as new afterwards. */
  flush(): string {
    const incomplete = this.#needed > 0;
    this.#reset();
    return incomplete ? "\uFFFD" : "";
  }

  #step(byte: number): string {
    if (this.#needed === 0) return this.#lead(byte);
    if (byte < this.#lower || byte > this.#upper) {
      this.#reset();
      return `\uFFFD${this.#lead(byte)}`;
    }
    this.#lower = 0x80;
    this.#upper = 0xbf;
    this.#codePoint = (this.#codePoint << 6) | (byte & 0x3f);
    if (--this.#needed > 0) return "";
    return String.fromCodePoint(this.#codePoint);
  }

  #lead(byte: number): string {
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return "\uFFFD";
    if (byte < 0xe0) {
      this.#needed = 1;
      this.#codePoint = byte & 0x1f;
    } else if (byte < 0xf0) {
      this.#needed = 2;
      this.#codePoint = byte & 0x0f;
      if (byte === 0xe0) this.#lower = 0xa0;
      if (byte === 0xed) this.#upper = 0x9f;
    } else {
      this.#needed = 3;
      this.#codePoint = byte & 0x07;
      if (byte === 0xf0) this.#lower = 0x90;
      if (byte === 0xf4) this.#upper = 0x8f;
    }
    return "";
  }

  #reset(): void {
    this.#needed = 0;
    this.#lower = 0x80;
    this.#upper = 0xbf;
  }
}
