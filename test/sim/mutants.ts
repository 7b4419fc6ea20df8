/** The safeguards without which a seed must fail: each is one edit of the source, made while it is loaded (`mutate.ts`). */

/** One safeguard taken out. */
export interface Mutant {
  name: string;
  what: string;
  /** From the project's root. */
  file: string;
  /** Text that is in the file exactly once. */
  find: string;
  replace: string;
}

/** Seeds within which every mutant is caught. */
export const MUTANT_SEEDS_MAX = 300;

/** Checksums, digests, chains, conditions, names, recomputing, what a suspended sequence left. */
export const MUTANTS: readonly Mutant[] = [
  {
    name: "block-checksum",
    what: "blocks that were read by range are not held against their checksum",
    file: "engine/kv/block-fetcher.ts",
    find: "crc32(bytes) !== read.segment.checksums[index]",
    replace: "crc32(bytes) === -1",
  },
  {
    name: "envelope-digest",
    what: "summaries, tails and manifests are not held against their digest",
    file: "storage/envelope.ts",
    find: "refuseUnless(intact,",
    replace: "refuseUnless(intact || !intact,",
  },
  {
    name: "segment-chain",
    what: "a manifest's segments are taken for the log's whatever tokens they were computed from",
    file: "engine/kv/attacher.ts",
    find: "end > sequence.promptEnd || sequence.chain(end / BLOCK_TOKENS - 1) !== segment.chain",
    replace: "end > sequence.promptEnd",
  },
  {
    name: "tail-agreement",
    what: "a tail is taken for the log's whatever tokens it holds",
    file: "engine/kv/open-blocks.ts",
    find: "count < most && tail.ids[count] === ids[count]",
    replace: "count < most",
  },
  {
    name: "if-match",
    what: "a manifest is put whatever another engine committed meanwhile",
    file: "storage/manifest.ts",
    find: "store.put(key, encodeManifest(manifest), { condition, signal })",
    replace: "store.put(key, encodeManifest(manifest), { signal, ...(condition ? {} : {}) })",
  },
  {
    name: "generation",
    what: "manifests do not count generations",
    file: "engine/persist/commit-queue.ts",
    find: "const generation = state.generation + 1;",
    replace: "const generation = 1;",
  },
  {
    name: "namespace",
    what: "tenants share names in the store",
    file: "storage/keys.ts",
    find: `const prefix = \`\${namespacePrefix(space.namespace)}`,
    replace: `const prefix = \`\${namespacePrefix("00")}`,
  },
  {
    name: "namespace-device",
    what: "tenants share names on the device",
    file: "engine/sequence/sequence.ts",
    find: `return \`\${this.namespace}:`,
    replace: `return \`:`,
  },
  {
    name: "stale-choice",
    what: "rows that share a choice attend to what an earlier run chose",
    file: "engine/sequence/runs.ts",
    find: "sequence.choice = { position: pending.position, bytes: pending.bytes };",
    replace: "sequence.choice = { position: pending.position, bytes: sequence.choice?.bytes ?? pending.bytes };",
  },
  {
    name: "lost-block",
    what: "a block that cannot be read is not computed again: its place is taken as it is",
    file: "engine/kv/block-fetcher.ts",
    find: "for (const block of wanted) this.#lose(block);",
    replace:
      "for (const block of wanted) if (block.deviceBlocks[read.layer] === NOT_RESIDENT) this.#options.cache.allocateLayer(block, read.layer);",
  },
  {
    name: "open-block",
    what: "a suspended sequence gets any open block back instead of its own",
    file: "engine/schedule/preemption.ts",
    find: "pool.writeOpen(slot, saved.tokenCount, saved.bytes);",
    replace: "pool.writeOpen(slot, saved.tokenCount, new Uint8Array(saved.bytes.length));",
  },
  {
    name: "host-bytes",
    what: "a block comes back from host memory without its bytes",
    file: "engine/kv/block-fetcher.ts",
    find: "pool.writeBlock(cache.allocateLayer(block, layer), bytes);",
    replace: "pool.writeBlock(cache.allocateLayer(block, layer), new Uint8Array(bytes.length));",
  },
];
