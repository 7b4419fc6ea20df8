// out (+)= x . matrix^T for the products of an op; their arguments are described in products.ts.
import { arg, partStart } from "./control";
import { runFloatPanels } from "./matmul-f32";
import { runInt4Panels } from "./matmul-int4";
import { runInt8Panels } from "./matmul-int8";
import { OP_MATMUL_BF16, OP_MATMUL_F32, OP_MATMUL_INT4 } from "./ops";
import { PRODUCTS, PRODUCT_WORDS } from "./products";

/**
 * Task = row part + row parts * panel part. Panels of all products count as one row of panels; both kinds of parts start at multiples of 4
 * panels or rows.
 */
export function matmulTask(op: i32, task: i32): void {
  const rows = arg(1);
  const rowParts = arg(3);
  const rowQuads = (rows + 3) >> 2;
  const rowFirst = partStart(rowQuads, task % rowParts, rowParts) << 2;
  const rowEnd = min(rows, partStart(rowQuads, (task % rowParts) + 1, rowParts) << 2);
  const end = PRODUCTS + arg(5) * PRODUCT_WORDS;
  let total = 0;
  for (let product = PRODUCTS; product < end; product += PRODUCT_WORDS) total += quadsOf(product);
  let first = partStart(total, task / rowParts, arg(4));
  let left = partStart(total, task / rowParts + 1, arg(4)) - first;
  for (let product = PRODUCTS; product < end && left > 0; product += PRODUCT_WORDS) {
    const quads = quadsOf(product);
    const count = min(left, quads - first);
    if (count > 0) {
      runPanels(op, product, first << 2, min((arg(product + 2) + 7) >> 3, (first + count) << 2), rowFirst, rowEnd);
      left -= count;
    }
    first = max(0, first - quads);
  }
}

/** Groups of four panels, 32 outputs. */
// @ts-ignore: decorator
@inline
function quadsOf(product: i32): i32 {
  return (arg(product + 2) + 31) >> 5;
}

function runPanels(op: i32, product: i32, panelFirst: i32, panelEnd: i32, rowFirst: i32, rowEnd: i32): void {
  if (op == OP_MATMUL_F32) runFloatPanels<f32>(product, panelFirst, panelEnd, rowFirst, rowEnd);
  else if (op == OP_MATMUL_BF16) runFloatPanels<u16>(product, panelFirst, panelEnd, rowFirst, rowEnd);
  else if (op == OP_MATMUL_INT4) runInt4Panels(product, panelFirst, panelEnd, rowFirst, rowEnd);
  else runInt8Panels(product, panelFirst, panelEnd, rowFirst, rowEnd);
}
