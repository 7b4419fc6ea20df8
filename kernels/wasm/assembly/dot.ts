// q.k for runs of tokens: four lane sums by channel mod 4, then the lanes. The same bits for any tile of queries and tokens.
import { sumLanes4 } from "./vector";

/**
 * scores[query][token] = q.k * scale for tokens [0, tokenCount) and all queries. Tokens come in fours: up to 3 keys and scores beyond
 * tokenCount are touched. `q` f32 [queryCount][headDim], `keys` f32 [tokens][headDim], rows of `scores` lie scoreBytes apart.
 */
export function scoreTokens(
  scores: usize,
  scoreBytes: usize,
  q: usize,
  queryCount: i32,
  keys: usize,
  tokenCount: i32,
  headDim: usize,
  scale: f32,
): void {
  const headBytes = headDim << 2;
  const scales = f32x4.splat(scale);
  for (let token = 0; token < tokenCount; token += 4) {
    const k = keys + <usize>token * headBytes;
    let to = scores + ((<usize>token) << 2);
    let query = q;
    let left = queryCount;
    for (; left >= 2; left -= 2) {
      two(to, to + scoreBytes, query, query + headBytes, k, headBytes, scales);
      query += headBytes << 1;
      to += scoreBytes << 1;
    }
    if (left > 0) one(to, query, k, headBytes, scales);
  }
}

function one(to: usize, q: usize, k: usize, headBytes: usize, scales: v128): void {
  const k1 = k + headBytes;
  const k2 = k1 + headBytes;
  const k3 = k2 + headBytes;
  let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
  for (let at: usize = 0; at < headBytes; at += 16) {
    const x = v128.load(q + at);
    a = f32x4.add(a, f32x4.mul(x, v128.load(k + at)));
    b = f32x4.add(b, f32x4.mul(x, v128.load(k1 + at)));
    c = f32x4.add(c, f32x4.mul(x, v128.load(k2 + at)));
    d = f32x4.add(d, f32x4.mul(x, v128.load(k3 + at)));
  }
  v128.store(to, f32x4.mul(sumLanes4(a, b, c, d), scales));
}

function two(toA: usize, toB: usize, qA: usize, qB: usize, k: usize, headBytes: usize, scales: v128): void {
  const k1 = k + headBytes;
  const k2 = k1 + headBytes;
  const k3 = k2 + headBytes;
  let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
  let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
  for (let at: usize = 0; at < headBytes; at += 16) {
    const x = v128.load(qA + at);
    const y = v128.load(qB + at);
    let key = v128.load(k + at);
    a = f32x4.add(a, f32x4.mul(x, key));
    e = f32x4.add(e, f32x4.mul(y, key));
    key = v128.load(k1 + at);
    b = f32x4.add(b, f32x4.mul(x, key));
    f = f32x4.add(f, f32x4.mul(y, key));
    key = v128.load(k2 + at);
    c = f32x4.add(c, f32x4.mul(x, key));
    g = f32x4.add(g, f32x4.mul(y, key));
    key = v128.load(k3 + at);
    d = f32x4.add(d, f32x4.mul(x, key));
    h = f32x4.add(h, f32x4.mul(y, key));
  }
  v128.store(toA, f32x4.mul(sumLanes4(a, b, c, d), scales));
  v128.store(toB, f32x4.mul(sumLanes4(e, f, g, h), scales));
}
