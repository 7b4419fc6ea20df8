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
  /** Lives of contexts that outgrow the pool show it. */
  isTight?: boolean;
  /** The first seed known to show it, where those before it take long: seeds are lived from it on. Default 1. */
  firstSeed?: number;
}

/** Seeds within which every mutant is caught. */
export const MUTANT_SEEDS_MAX = 300;

/** Checksums, digests, chains, conditions, names, recomputing, what a suspended sequence left, what a context larger than the pool holds on to. */
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
    firstSeed: 122,
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
    name: "tombstone",
    what: "a deleted session leaves nothing in the place of its manifest",
    file: "storage/end-session.ts",
    find: "const { outcome } = await store.put(manifestKey, encodeTombstone(left), { condition, signal });",
    replace: `await store.delete([manifestKey]);
    if (condition) return objectKeys;
    const { outcome } = await store.put(manifestKey, encodeTombstone(left), { condition, signal });`,
    firstSeed: 73,
  },
  {
    name: "deleted-commit",
    what: "a commit of a deleted session takes the place of its tombstone",
    file: "engine/persist/commit-queue.ts",
    find: "return sinceMs < bornMs;",
    replace: "return sinceMs < bornMs && bornMs < 0;",
  },
  {
    name: "shorter",
    what: "a turn that was cut short for want of room is committed whatever is in force",
    file: "engine/persist/commit-queue.ts",
    find: "if ((snapshot.isCut || state.isOthers) && (await this.#reload(state, objectKeys, snapshot))) return;",
    replace: "if (snapshot.tokenCount < 0) return;",
    firstSeed: 36,
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
    firstSeed: 147,
  },
  {
    name: "host-bytes",
    what: "a block comes back from host memory without its bytes",
    file: "engine/kv/block-fetcher.ts",
    find: "pool.writeBlock(cache.allocateLayer(block, layer), bytes);",
    replace: "pool.writeBlock(cache.allocateLayer(block, layer), new Uint8Array(bytes.length));",
  },
  {
    name: "loose-pin",
    what: "what a suspended step has waited for may leave before it goes on",
    file: "engine/kv/loose-layers.ts",
    find: "known.block.isLoose && this.#pins.get(known.block)?.has(known.layer) !== true",
    replace: "known.block.isLoose",
    isTight: true,
  },
  {
    name: "loose-step",
    what: "memory leaves the device while a step reads it",
    file: "engine/kv/block-cache.ts",
    find: "this.#running = promise;",
    replace: "void promise;",
    isTight: true,
  },
  {
    name: "loose-tables",
    what: "a step's tables are those of when it was planned, whatever left since",
    file: "engine/sequence/summary-layers.ts",
    find: "if (sequence.workingSet || !isFirst)",
    replace: "if (!isFirst)",
    isTight: true,
    firstSeed: 28,
  },
  {
    name: "loose-room",
    what: "a context larger than the pool sets aside only what a step seals",
    file: "engine/sequence/working-set.ts",
    find: "widestLayer(sequence, shape, groupsMax) + shape.layerCount;",
    replace: "shape.layerCount;",
    isTight: true,
  },
  {
    name: "layer-end",
    what: "pages of a layer are scored before its summaries have come",
    file: "engine/stepper.ts",
    find: "const layerEnd = summaryLayerEnd(sequence, planned);",
    replace: "const layerEnd = undefined;",
    isTight: true,
  },
  {
    name: "summary-layer",
    what: "a layer of summaries is not held against its checksum",
    file: "engine/kv/layered-summaries.ts",
    find: "if (!isSectionIntact(this.#options.head, layer, section))",
    replace: "if (layer < 0)",
    isTight: true,
    firstSeed: 144,
  },
];
