/** `npm run bench -- greedy-tenant`: one tenant asks for twenty times what each of the others does; what the others feel of it. */
import { type Bench, defineBench } from "../bench.ts";
import { atLeast, atMost } from "./bars.ts";
import { playStage, probeCapacity, type Stage, stageFlags, stagesResult } from "./stages.ts";

/** Tenants beside the greedy one. */
const OTHER_COUNT = 4;
const GREED = 20;
/** All of it together, against what the engine can do: more than there is, though the others ask for a third. */
const LOAD_SHARE = 2;
const RATIO_MAX = 1.5;
/** A 95th percentile of fewer says nothing. */
const TURNS_MIN = 40;

/** The benchmark as the registry names it. */
export const greedyTenantBench: Bench = defineBench({
  summary:
    "Four tenants alone, then the same sessions beside a tenant that sends 20 times what each of them does, twice what the engine can do in all.\n" +
    "Bar: the others' 95th percentile of the time to the first token at most 1.5 times what it is alone.",
  flags: stageFlags,
  async run(values, context) {
    const probe = await probeCapacity(values, context);
    const load = {
      rate: LOAD_SHARE * probe.turnsPerS,
      tenants: [GREED, ...Array.from({ length: OTHER_COUNT }, () => 1)],
    };
    const isOther = ({ tenant }: { tenant: number }): boolean => tenant > 0;
    const groupOf = (tenant: number): number => Math.min(tenant, 1);
    const alone = await playStage({ name: "others alone", values, load, context, keep: isOther, groupOf });
    const beside = await playStage({ name: "beside the greedy one", values, load, context, groupOf });
    const [before, after] = [othersOf(alone), othersOf(beside)];
    for (const [name, others] of [
      ["others alone", before],
      ["others beside the greedy tenant", after],
    ] as const)
      context.print(
        `${name}: ${others?.turnsCompleted ?? 0} turns, first token p50 ${others?.firstTokenMs.p50?.toFixed(1) ?? "-"} ms, p95 ${others?.firstTokenMs.p95?.toFixed(1) ?? "-"} ms, ${others?.failed ?? 0} refused or failed`,
      );
    const [p95Alone, p95Beside] = [before?.firstTokenMs.p95, after?.firstTokenMs.p95];
    const ratio = p95Alone === undefined || p95Beside === undefined ? undefined : p95Beside / p95Alone;
    const bars = [
      atMost("the others' p95 to the first token, beside over alone", ratio, RATIO_MAX),
      atMost("the others' turns refused or failed", after?.failed, 0),
      atLeast("the others' turns that were measured", after?.turnsCompleted, TURNS_MIN),
    ];
    return stagesResult(context, { values, stages: [probe, alone, beside], bars });
  },
});

function othersOf({ tenants }: Stage): Stage["tenants"][number] | undefined {
  return tenants.find(({ name }) => name === "tenant 1");
}
