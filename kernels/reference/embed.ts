import { assert } from "../../protocol/assert.ts";
import type { ReferenceMatrix } from "./memory.ts";
import { SCALE_GROUP } from "./quantize-rows.ts";

/** `out[r] = table[tokens[r]]`, decoded. `out` f32 `[rows, inWidth]`. */
export function embed(out: Float32Array, table: ReferenceMatrix, tokens: Uint32Array): void {
  const width = table.inWidth;
  const groups = Math.ceil(width / SCALE_GROUP);
  tokens.forEach((token, row) => {
    assert(token < table.outWidth, `token ${token} is outside a table of ${table.outWidth}`);
    for (let channel = 0; channel < width; channel++) {
      const at = token * width + channel;
      const scale = table.scales[token * groups + Math.floor(channel / SCALE_GROUP)] as number;
      out[row * width + channel] = table.isFloat ? (table.floats[at] as number) : (table.codes[at] as number) * scale;
    }
  });
}
