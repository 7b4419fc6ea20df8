/** What `npm run bench -- gpu` does, in order: correctness, then speed, what is worth most first; each stage in a process and with a limit of its own. */

/** One run of a benchmark. */
export interface GpuStage {
  name: string;
  /** Arguments of `npm run bench --`. */
  args: readonly string[];
  /** Killed after so many seconds. */
  limitS: number;
}

/** Sizes of one run: `8b` for hardware, `smoke` shows on a software GPU that everything runs. */
export type GpuSize = "8b" | "smoke";

/** Contexts of the bars in tokens. The longest leaves room for the tokens that are decoded behind it: a model has 131,072 positions. */
export const GPU_CONTEXTS = {
  "8b": { short: 32_768, long: 131_008 },
  smoke: { short: 256, long: 512 },
} as const satisfies Record<GpuSize, { short: number; long: number }>;

/** The stage that says whether kernels are right. */
export const OPS_STAGE = "ops";

/** Every stage of a run. */
export function gpuStages(size: GpuSize): GpuStage[] {
  return size === "8b" ? fullStages() : smokeStages();
}

function fullStages(): GpuStage[] {
  const { short, long } = GPU_CONTEXTS["8b"];
  const model = ["--device=webgpu", "--shape=8b"];
  const attention = ["kernels", ...model, "--part=attention", "--batch=8", "--budget=2048", "--ms=250"];
  const decode = ["decode", ...model, "--weights=int4", "--policies=dense,quest", "--budget=2048", "--tokens=32"];
  return [
    { name: OPS_STAGE, args: ["gpu-check", "--suite=false"], limitS: 45 },
    { name: "suite", args: ["gpu-check", "--ops=false", "--seconds=60"], limitS: 75 },
    {
      name: "linear",
      args: ["kernels", ...model, "--part=linear", "--weights=int4", "--batch=8", "--ms=150"],
      limitS: 45,
    },
    { name: "attention-short", args: [...attention, `--context=${short}`], limitS: 45 },
    { name: "decode-short", args: [...decode, `--contexts=${short}`, "--batch=8"], limitS: 70 },
    { name: "attention-long", args: [...attention, `--context=${long}`], limitS: 60 },
    { name: "decode-long", args: [...decode, `--contexts=${long}`], limitS: 60 },
    { name: "prefill", args: ["prefill", ...model, "--weights=int4", "--contexts=0", "--tokens=2048"], limitS: 40 },
  ];
}

function smokeStages(): GpuStage[] {
  const { short, long } = GPU_CONTEXTS.smoke;
  const model = ["--device=webgpu", "--shape=tiny"];
  const attention = ["kernels", ...model, "--part=attention", "--batch=2", "--budget=128", "--rows=64", "--ms=1"];
  const decode = ["decode", ...model, "--weights=int4", "--policies=dense,quest", "--budget=128", "--tokens=1"];
  const limitS = 900;
  const stages = {
    [OPS_STAGE]: ["gpu-check", "--suite=false"],
    suite: ["gpu-check", "--ops=false", "--parts=misuse", "--seconds=120"],
    linear: ["kernels", ...model, "--part=linear", "--weights=int4", "--batch=2", "--rows=64", "--ms=1"],
    "attention-short": [...attention, `--context=${short}`],
    "decode-short": [...decode, `--contexts=${short}`, "--batch=2"],
    "attention-long": [...attention, `--context=${long}`],
    "decode-long": [...decode, `--contexts=${long}`],
    prefill: ["prefill", ...model, "--weights=int4", "--contexts=0", "--tokens=70"],
  };
  return Object.entries(stages).map(([name, args]) => ({ name, args, limitS }));
}
