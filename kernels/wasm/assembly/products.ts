// Products of one input with several matrices in one op, so that threads meet once for all of them (query, key and value; gate and up).
import { arg, argAt } from "./control";
import { storeUpTo8 } from "./vector";

// args: 0 x, 1 rows, 2 inWidth, 3 row parts, 4 panel parts, 5 products; from 8 on, four words a product: out, matrix, outWidth, accumulate?
export const PRODUCTS: i32 = 8;
export const PRODUCT_WORDS: i32 = 4;

/** Words of a product, counted from its first argument. */
// @ts-ignore: decorator
@inline
export function matrixOf(product: i32): usize {
  return argAt(product + 1);
}

/** Writes eight sums of one row of a product, or adds them to what is there. */
export function put(product: i32, row: i32, panel: i32, low: v128, high: v128): void {
  const outWidth = arg(product + 2);
  const count = min(8, outWidth - panel * 8);
  const out = argAt(product) + (<usize>row * <usize>outWidth + <usize>panel * 8) * 4;
  if (arg(product + 3) == 0) {
    storeUpTo8(out, low, high, count);
  } else if (count == 8) {
    v128.store(out, f32x4.add(v128.load(out), low));
    v128.store(out, f32x4.add(v128.load(out, 16), high), 16);
  } else {
    addUpTo7(out, low, high, count);
  }
}

function addUpTo7(out: usize, low: v128, high: v128, count: i32): void {
  let rest = low;
  let left = count;
  let at = out;
  if (left >= 4) {
    v128.store(at, f32x4.add(v128.load(at), low));
    rest = high;
    left -= 4;
    at += 16;
  }
  if (left > 0) store<f32>(at, load<f32>(at) + f32x4.extract_lane(rest, 0));
  if (left > 1) store<f32>(at, load<f32>(at, 4) + f32x4.extract_lane(rest, 1), 4);
  if (left > 2) store<f32>(at, load<f32>(at, 8) + f32x4.extract_lane(rest, 2), 8);
}
