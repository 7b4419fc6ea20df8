/** What is encoded: prose, code and other scripts, in parts as a long conversation might have them. */

import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { mixedTexts } from "../../test/tokenizer/mixed-text.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const BOOKS = new URL("../../../shared/data/books/books.txt.xz", import.meta.url);
const CODE_FOLDERS = ["engine", "kernels", "models", "protocol", "storage", "tokenizer", "workers"];
/** Parts are interleaved in pieces of this size. */
const PIECE_CHARS = 2_000;

/** The texts, and what they are made of in words. */
export interface BenchTexts {
  texts: string[];
  made: string;
}

/** `count` texts of `charCount` characters, each of other material: 55 % prose, 35 % code, 10 % mixed scripts and emoji. */
export function makeTexts({ count, charCount, seed }: { count: number; charCount: number; seed: number }): BenchTexts {
  const books = readBooks(count * charCount);
  const prose = books ?? readTree([""], /\.md$/);
  const code = readTree(CODE_FOLDERS, /\.ts$/);
  const scripts = mixedTexts(seed, Math.ceil(count * charCount * 0.1)).join("\n");
  const texts = Array.from({ length: count }, (_, index) => {
    const share = (source: string, part: number): string =>
      takeCircular(source, index * charCount * part, charCount * part);
    return interleave([share(prose, 0.55), share(code, 0.35), share(scripts, 0.1)]);
  });
  const made = `${books === undefined ? "this repository's documents" : "books"}, this repository's code, mixed scripts`;
  return { texts, made };
}

function readBooks(charCount: number): string | undefined {
  if (!existsSync(BOOKS)) return undefined;
  try {
    const command = 'xz -dc "$1" | head -c "$2"';
    const args = ["-c", command, "sh", fileURLToPath(BOOKS), String(charCount * 2)];
    return execFileSync("sh", args, { encoding: "utf8", maxBuffer: 2 ** 30, stdio: ["ignore", "pipe", "ignore"] });
  } catch {
    return undefined;
  }
}

function readTree(folders: readonly string[], pattern: RegExp): string {
  return folders
    .flatMap((folder) => readdirSync(`${root}${folder}`, { withFileTypes: true }).map((entry) => ({ folder, entry })))
    .filter(({ entry }) => entry.isFile() && pattern.test(entry.name))
    .map(({ folder, entry }) => readFileSync(`${root}${folder}/${entry.name}`, "utf8"))
    .join("\n");
}

function takeCircular(source: string, from: number, length: number): string {
  let text = "";
  for (let at = Math.floor(from) % source.length; text.length < length; at = 0) text += source.slice(at);
  return text.slice(0, Math.floor(length));
}

function interleave(parts: readonly string[]): string {
  const total = Math.max(...parts.map((part) => part.length));
  const pieces: string[] = [];
  for (let at = 0; at < total; at += PIECE_CHARS) {
    for (const part of parts) {
      const scale = part.length / total;
      pieces.push(part.slice(Math.floor(at * scale), Math.floor((at + PIECE_CHARS) * scale)));
    }
  }
  return pieces.join("").toWellFormed();
}
