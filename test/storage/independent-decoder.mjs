/**
 * Reads segments, summary objects, tails and manifests as `docs/page-format.md` describes them. Written from that page,
 * with nothing of this project imported: where it disagrees with `storage/`, one of the two is wrong.
 */
import { createDecipheriv, createHash, hkdfSync } from "node:crypto";

const ENCODINGS = ["f32", "int8", "f16", "int4"];
const KINDS = [
  "none",
  "min-max",
  "mean-deviation",
  "centre-deviation",
  "representatives",
  "sign-bits",
  "residual-signs",
];

/** CRC-32 of gzip, bit by bit. */
function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return (value ^ 0xffffffff) >>> 0;
}

function ascii(view, offset, length) {
  let text = "";
  for (let i = 0; i < length; i++) text += String.fromCharCode(view.getUint8(offset + i));
  return text;
}

function hex(view, offset, length) {
  let text = "";
  for (let i = 0; i < length; i++)
    text += view
      .getUint8(offset + i)
      .toString(16)
      .padStart(2, "0");
  return text;
}

function u32(view, offset) {
  return view.getUint32(offset, true);
}

function check(condition, what) {
  if (!condition) throw new Error(`independent decoder: ${what}`);
}

function geometryAt(view, offset) {
  const summaryKinds = [];
  for (let i = 0; i < 4; i++) {
    const code = view.getUint8(offset + 16 + i);
    if (code !== 0) summaryKinds.push(KINDS[code]);
  }
  return {
    layerCount: u32(view, offset),
    kvHeadCount: u32(view, offset + 4),
    headDim: u32(view, offset + 8),
    encoding: ENCODINGS[u32(view, offset + 12)],
    summaryKinds,
    blockBytes: u32(view, offset + 20),
    openTokenBytes: u32(view, offset + 24),
    summaryBytes: u32(view, offset + 28),
    segmentTokens: u32(view, offset + 32),
  };
}

/** A segment: `{geometry, fromToken, tokenCount, chain, checksums, blocks: [layer][block]}`. Throws on damage. */
export function decodeSegment(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  check(ascii(view, 0, 8) === "QUIRESEG", "segment magic");
  check(u32(view, 8) <= 2, "segment version");
  const h = u32(view, 12);
  check(crc(bytes.subarray(0, h - 4)) === u32(view, h - 4), "segment header checksum");
  const geometry = geometryAt(view, 16);
  check(u32(view, 8) === (["f32", "int8"].includes(geometry.encoding) ? 1 : 2), "version of the encoding");
  const perLayer = geometry.segmentTokens / 64;
  check(h === Math.ceil((92 + 4 * geometry.layerCount * perLayer + 4) / 64) * 64, "segment header length");
  const checksums = [];
  const blocks = [];
  for (let layer = 0; layer < geometry.layerCount; layer++) {
    blocks.push([]);
    for (let b = 0; b < perLayer; b++) {
      const offset = h + (layer * perLayer + b) * geometry.blockBytes;
      const block = bytes.subarray(offset, offset + geometry.blockBytes);
      const checksum = u32(view, 92 + 4 * (layer * perLayer + b));
      check(crc(block) === checksum, "block checksum");
      checksums.push(checksum);
      blocks[layer].push(block);
    }
  }
  check(bytes.byteLength === h + geometry.layerCount * perLayer * geometry.blockBytes, "segment length");
  return { geometry, fromToken: u32(view, 52), tokenCount: u32(view, 56), chain: hex(view, 60, 32), checksums, blocks };
}

function bodyOf(bytes, magic) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  check(ascii(view, 0, 8) === magic, `${magic} magic`);
  const version = u32(view, 8);
  check(version === 2 || version === 3 || (version === 4 && magic !== "QUIRETAI"), `${magic} version`);
  const n = u32(view, 12);
  check(bytes.byteLength === 16 + n + 32, `${magic} length`);
  const digest = createHash("sha256")
    .update(bytes.subarray(0, 16 + n))
    .digest("hex");
  check(digest === hex(view, 16 + n, 32), `${magic} digest`);
  return { body: bytes.subarray(16, 16 + n), digest, version };
}

/** Of a summary object of version 4: the head against its digest at body offset d, each layer's section against its CRC-32. */
function checkHead(bytes, view, { d, L, sectionBytes }) {
  const digest = createHash("sha256")
    .update(bytes.subarray(0, 16 + d))
    .digest("hex");
  check(digest === hex(view, d, 32), "summaries head digest");
  for (let layer = 0; layer < L; layer++) {
    const at = 16 + d + 32 + layer * sectionBytes;
    check(
      crc(bytes.subarray(at, at + sectionBytes)) === u32(view, d - 4 * L + 4 * layer),
      "summaries section checksum",
    );
  }
}

/** A summary object: `{digest, geometry, fromToken, kind, segments: {chain, checksums, slots: [block]}[]}`. Throws on damage. */
export function decodeSummaries(bytes) {
  const { body, digest, version } = bodyOf(bytes, "QUIRESUM");
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const geometry = geometryAt(view, 0);
  const count = u32(view, 40);
  const kind = KINDS[u32(view, 44)];
  const slotBytes = kind === "none" ? 0 : geometry.summaryBytes;
  const perLayer = geometry.segmentTokens / 64;
  const L = geometry.layerCount;
  const tableCount = L * perLayer;
  const d = 48 + 32 * count + 4 * count * tableCount + 4 * L;
  if (version === 4) checkHead(bytes, view, { d, L, sectionBytes: (count * perLayer * slotBytes) / L });
  const segments = [];
  for (let s = 0; s < count; s++) {
    const checksums = [];
    for (let i = 0; i < tableCount; i++) checksums.push(u32(view, 48 + 32 * count + 4 * (s * tableCount + i)));
    const slots = [];
    for (let b = 0; b < perLayer; b++) {
      const offset = 48 + 32 * count + 4 * count * tableCount + (s * perLayer + b) * slotBytes;
      const share = slotBytes / L;
      const ofLayer = (_, layer) => {
        const at = d + 32 + ((layer * count + s) * perLayer + b) * share;
        return body.subarray(at, at + share);
      };
      if (version === 4) slots.push(Buffer.concat(Array.from({ length: L }, ofLayer)));
      else slots.push(body.subarray(offset, offset + slotBytes));
    }
    segments.push({ chain: hex(view, 48 + 32 * s, 32), checksums, slots });
  }
  const headBytes = version === 4 ? d + 32 : 48 + count * (32 + 4 * tableCount);
  check(body.byteLength === headBytes + count * perLayer * slotBytes, "summaries length");
  return { digest: version === 4 ? hex(view, d, 32) : digest, geometry, fromToken: u32(view, 36), kind, segments };
}

/** A tail: `{digest, geometry, fromToken, generation, chain, ids, blocks: [block][layer], slots: {[kind]: [block]}, open}`. Throws on damage. */
export function decodeTail(bytes) {
  const { body, digest } = bodyOf(bytes, "QUIRETAI");
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const geometry = geometryAt(view, 0);
  const n = u32(view, 40);
  const ids = [];
  for (let i = 0; i < n; i++) ids.push(u32(view, 80 + 4 * i));
  let offset = 80 + 4 * n;
  const take = (length) => {
    offset += length;
    return body.subarray(offset - length, offset);
  };
  const blocks = [];
  for (let b = 0; b < Math.floor(n / 64); b++) {
    blocks.push([]);
    for (let layer = 0; layer < geometry.layerCount; layer++) blocks[b].push(take(geometry.blockBytes));
  }
  const slots = {};
  for (const kind of geometry.summaryKinds) slots[kind] = blocks.map(() => take(geometry.summaryBytes));
  const open = take((n % 64) * geometry.openTokenBytes);
  check(offset === body.byteLength, "tail length");
  return {
    digest,
    geometry,
    fromToken: u32(view, 36),
    generation: u32(view, 44),
    chain: hex(view, 48, 32),
    ids,
    blocks,
    slots,
    open,
  };
}

/** A manifest's fields, or a tombstone's (version 4). Throws on damage. */
export function decodeManifest(bytes) {
  return JSON.parse(new TextDecoder().decode(bodyOf(bytes, "QUIREMAN").body));
}

/**
 * Residual signs of one KV head of a slot, `8 * D + 32` bytes: `{mean: [D], tokens: [64]{signs: [n] of 1 and -1, length}}`, decoded. Lengths of a page
 * that is not finite are NaN.
 */
export function decodeResidualSigns(D, head) {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const b = Math.floor((7 * D) / 64);
  const scale = (page, index) => view.getFloat32(8 * D + (page * 2 + index) * 4, true);
  const mean = [];
  for (let c = 0; c < D; c++) {
    const page = Math.floor((4 * c) / D);
    mean.push(view.getInt8(page * 2 * D + (7 * D) / 4 + c - (page * D) / 4) * scale(page, 0));
  }
  const tokens = [];
  for (let t = 0; t < 64; t++) {
    const page = Math.floor(t / 16);
    const byte = (a) => view.getUint8(page * 2 * D + a * 16 + (t % 16));
    const signs = [];
    for (let i = 0; i < 8 * b - 4; i++) signs.push((byte(Math.floor(i / 8)) >> (i % 8)) & 1 ? -1 : 1);
    tokens.push({ signs, length: (byte(b - 1) >> 4) * scale(page, 1) });
  }
  return { mean, tokens };
}

/** Values of an int8 block: `{keys, values}`, f32 `[kvHead][64][headDim]` each, decoded. */
export function decodeInt8Block(geometry, block) {
  const { kvHeadCount: H, headDim: D } = geometry;
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const codesBytes = H * 64 * D;
  const keyScales = codesBytes;
  const valueCodes = keyScales + 4 * H * D;
  const valueScales = valueCodes + codesBytes;
  const keys = new Float32Array(codesBytes);
  const values = new Float32Array(codesBytes);
  for (let h = 0; h < H; h++) {
    for (let t = 0; t < 64; t++) {
      for (let d = 0; d < D; d++) {
        const i = (h * 64 + t) * D + d;
        keys[i] = view.getInt8(i) * view.getFloat32(keyScales + 4 * (h * D + d), true);
        values[i] = view.getInt8(valueCodes + i) * view.getFloat32(valueScales + 4 * (h * 64 + t), true);
      }
    }
  }
  return { keys, values };
}

/** Values of an int4 block, as {@link decodeInt8Block} gives them. */
export function decodeInt4Block(geometry, block) {
  const { kvHeadCount: H, headDim: D } = geometry;
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const part = (start, vectors, vectorOf) => {
    const decoded = new Float32Array(H * 64 * D);
    for (let i = 0; i < decoded.length; i++) {
      const vector = vectorOf(i);
      const scale = view.getFloat32(start + 4 * vector, true);
      const least = view.getInt8(start + 4 * vectors + vector);
      const step = view.getUint8(start + 5 * vectors + vector);
      const pair = view.getUint8(start + 6 * vectors + Math.floor(i / 2));
      const code = i % 2 === 0 ? pair % 16 : Math.floor(pair / 16);
      decoded[i] = Math.min(127, least + step * code) * scale;
    }
    return decoded;
  };
  const headOf = (i) => Math.floor(i / (64 * D));
  const keys = part(0, H * D, (i) => headOf(i) * D + (i % D));
  return { keys, values: part(6 * H * D + H * 32 * D, H * 64, (i) => Math.floor(i / D)) };
}

/** Values of an f16 block, as {@link decodeInt8Block} gives them. */
export function decodeF16Block(geometry, block) {
  const { kvHeadCount: H, headDim: D } = geometry;
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const count = H * 64 * D;
  const part = (first) => Float32Array.from({ length: count }, (_, i) => view.getFloat16(2 * (first + i), true));
  return { keys: part(0), values: part(count) };
}

/**
 * Values of one kind of a summary slot: `{centre, radius}`, f32 `[layer][kvHead][4][headDim]` each, decoded (section 2).
 */
export function decodeSummarySlot(geometry, slot) {
  const { layerCount: L, kvHeadCount: H, headDim: D } = geometry;
  check(slot.byteLength === L * H * (8 * D + 32), "summary slot length");
  const view = new DataView(slot.buffer, slot.byteOffset, slot.byteLength);
  const values = [new Float32Array(L * H * 4 * D), new Float32Array(L * H * 4 * D)];
  for (let head = 0; head < L * H; head++) {
    const at = head * (8 * D + 32);
    for (let page = 0; page < 4; page++) {
      for (let entry = 0; entry < 2; entry++) {
        const vector = page * 2 + entry;
        const scale = view.getFloat32(at + 8 * D + 4 * vector, true);
        for (let d = 0; d < D; d++)
          values[entry][(head * 4 + page) * D + d] = view.getInt8(at + vector * D + d) * scale;
      }
    }
  }
  return { centre: values[0], radius: values[1] };
}

/** The plain bytes of an encrypted object (section 11). Throws on damage, another key, or another place. */
export function decryptObject(master, key, stored) {
  const namespace = key.split("/")[1];
  const derive = (secret, info) => Buffer.from(hkdfSync("sha256", secret, "quire page store 1", info, 32));
  const secret = derive(derive(master, `tenant ${namespace}`), `object ${key}`);
  const view = new DataView(stored.buffer, stored.byteOffset, stored.byteLength);
  const n = u32(view, 8);
  const id = createHash("sha256").update("quire page key id 1").update(master).digest("hex").slice(0, 8);
  const parts = [];
  check(stored.byteLength === Math.max(1, Math.ceil(n / 4096)) * 4132, "encrypted length");
  for (let i = 0; i * 4132 < stored.byteLength; i++) {
    const at = i * 4132;
    check(ascii(view, at, 4) === "QENC" && hex(view, at + 4, 4) === id && u32(view, at + 8) === n, "chunk header");
    const nonce = Buffer.alloc(12);
    nonce.set(stored.subarray(at + 12, at + 20));
    nonce.writeUInt32LE(i, 8);
    const gcm = createDecipheriv("aes-256-gcm", secret, nonce);
    gcm.setAAD(Buffer.from(`quire page 1\n${key}\n${n}\n${i}`));
    gcm.setAuthTag(stored.subarray(at + 4116, at + 4132));
    parts.push(gcm.update(stored.subarray(at + 20, at + 4116)), gcm.final());
  }
  return new Uint8Array(Buffer.concat(parts).subarray(0, n));
}
