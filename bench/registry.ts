/** The benchmarks by name. They are loaded when they are asked for. */
import type { Bench } from "./bench.ts";

/** What the overview says about a benchmark, and where it is. */
export interface BenchEntry {
  summary: string;
  load(): Promise<Bench>;
}

/** In the order in which the overview lists them. */
export const benches: Readonly<Record<string, BenchEntry>> = {
  load: {
    summary: "multi-turn sessions against the edge or an engine: latencies, errors, reuse",
    load: async () => (await import("./load/load.ts")).loadBench,
  },
  soak: {
    summary: "the load test for long, with aborts and killed engines: nothing wrong, lost, leaked, or growing",
    load: async () => (await import("./load/soak.ts")).soakBench,
  },
  "greedy-tenant": {
    summary: "what tenants feel of one that asks for twenty times as much",
    load: async () => (await import("./load/greedy-tenant.ts")).greedyTenantBench,
  },
  overload: {
    summary: "what is served in time at twice the load that can be served",
    load: async () => (await import("./load/overload.ts")).overloadBench,
  },
  "retry-after": {
    summary: "whether refused clients are taken in when they come back as they were told",
    load: async () => (await import("./load/overload.ts")).retryAfterBench,
  },
  interference: {
    summary: "what sequences that stream feel of a long prompt beside them",
    load: async () => (await import("./schedule/interference.ts")).interferenceBench,
  },
  edge: {
    summary: "what the edge adds to a request and to a token, in a bare workerd",
    load: async () => (await import("./edge/edge.ts")).edgeBench,
  },
  coldstart: {
    summary: "from no engine at all to the first token of a resumed session, in parts",
    load: async () => (await import("./coldstart/coldstart.ts")).coldstartBench,
  },
  routing: {
    summary: "which engine takes a turn: the fleet's choice against others', on a thousand simulated engines",
    load: async () => (await import("./routing/routing.ts")).routingBench,
  },
  batching: {
    summary: "tokens per second of many sequences that decode together, against one",
    load: async () => (await import("./schedule/batching.ts")).batchingBench,
  },
  resume: {
    summary:
      "the first token of a turn on an engine that has just started: recomputed, restored as a whole, by selection",
    load: async () => (await import("./resume/resume.ts")).resumeBench,
  },
  "resume-answers": {
    summary: "answers of a second turn on an engine that resumes lazily against one that has everything",
    load: async () => (await import("./resume/second-turn.ts")).secondTurnBench,
  },
  foretell: {
    summary: "what can be known of the blocks that a resumed turn will choose, before they have come",
    load: async () => (await import("./resume/foretell.ts")).foretellBench,
  },
  "tight-pool": {
    summary: "decode in a pool that is smaller than the context: speed, bytes moved, memory of the process",
    load: async () => (await import("./tight/tight-pool.ts")).tightPoolBench,
  },
  speculation: {
    summary: "tokens per second with and without guessed tokens; the text must be the same",
    load: async () => (await import("./schedule/speculation.ts")).speculationBench,
  },
  recall: {
    summary: "share of right answers by kind of question, length of the context and selection policy",
    load: async () => (await import("./recall/recall.ts")).recallBench,
  },
  encodings: {
    summary: "what each encoding of stored pages costs in bytes, and what it does to a model's next tokens",
    load: async () => (await import("./encodings/encodings.ts")).encodingsBench,
  },
  router: {
    summary: "the prompt router: cost at equal answers against every fixed choice, on held-out prompts",
    load: async () => (await import("./router/router.ts")).routerBench,
  },
  "router-train": {
    summary: "trains the prompt router on measured answers",
    load: async () => (await import("./router/train.ts")).routerTrainBench,
  },
  "router-data": {
    summary: "what the house model answers to the prompt router's prompts under every choice",
    load: async () => (await import("./router/measure.ts")).routerDataBench,
  },
  eval: {
    summary: "which selection costs a model what: fidelity, perplexity and answers against bytes (npm run eval)",
    load: async () => (await import("./eval/eval.ts")).evalBench,
  },
  guard: {
    summary: "what keys, limits and signatures add to a request, in a bare workerd",
    load: async () => (await import("./guard.ts")).guardBench,
  },
  tokenizer: {
    summary: "tokens per second in workerd and in Node, against @huggingface/tokenizers",
    load: async () => (await import("./tokenizer/tokenizer.ts")).tokenizerBench,
  },
  "make-shape": {
    summary: "seeded random weights of a shape, as a HF folder and as GGUF, for comparisons with peers",
    load: async () => (await import("./make-shape/make-shape.ts")).makeShapeBench,
  },
  "gpu-host": {
    summary: "dispatches and host milliseconds of a decode step on the GPU device, with no GPU behind it",
    load: async () => (await import("./gpu/host-time.ts")).gpuHostBench,
  },
  "gpu-check": {
    summary: "the GPU device: some ops against the reference, then the conformance suite as far as time goes",
    load: async () => (await import("./gpu/check.ts")).gpuCheckBench,
  },
  gpu: {
    summary: "everything about the GPU device in one run: correctness, kernels, decode, prefill, and the bars",
    load: async () => (await import("./gpu/gpu.ts")).gpuBench,
  },
  decode: {
    summary: "time and bytes of one more token, by context, selection policy and budget",
    load: async () => (await import("./decode/decode.ts")).decodeBench,
  },
  prefill: {
    summary: "tokens per second of a prompt, by context, selection policy and budget",
    load: async () => (await import("./prefill/prefill.ts")).prefillBench,
  },
  peers: {
    summary: "this engine and llama.cpp on the same machine in turns: ratios",
    load: async () => (await import("./peers/peers.ts")).peersBench,
  },
  kernels: {
    summary: "every op of the CPU device: GB/s, GOP/s, and the share of what the machine can do",
    load: async () => (await import("./kernels/kernels.ts")).kernelsBench,
  },
};
