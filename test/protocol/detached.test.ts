import { expect, it } from "vitest";
import { detached } from "../../protocol/detached.ts";
import { ReplayGuard } from "../../protocol/signature.ts";
import { keptBytes } from "../support/kept-bytes.ts";

/** A piece of 32 characters of a text of 100,000, which is nobody's else. */
function pieceOf(index: number): string {
  return `${String(index).padStart(32, "0")}${"x".repeat(100_000)}`.slice(0, 32);
}

it("is the same text and keeps nothing of what it was cut out of, which a piece does", () => {
  const pieces = keptBytes(() => Array.from({ length: 100 }, (_, index) => pieceOf(index)));
  const copies = keptBytes(() => Array.from({ length: 100 }, (_, index) => detached(pieceOf(index))));
  expect(copies.made).toEqual(pieces.made);
  expect(pieces.bytes).toBeGreaterThan(5_000_000);
  expect(copies.bytes).toBeLessThan(1_000_000);
  for (const text of ["", 'a"b\\', "\ud83d\ude00", "\ud83d", "\u0000"]) expect(detached(text)).toBe(text);
});

it("nonces that were used are kept without the headers that they came in", () => {
  const { bytes, made } = keptBytes(() => {
    const guard = new ReplayGuard();
    for (let index = 0; index < 100; index++) guard.admit({ nonce: pieceOf(index), expiresMs: 1 }, 0);
    return guard;
  });
  expect(made.admit({ nonce: pieceOf(7), expiresMs: 1 }, 0)).toBe(false);
  expect(bytes).toBeLessThan(1_000_000);
});
