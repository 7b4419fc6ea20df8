/** `npm run bench -- overload` and `-- retry-after`: twice what can be served. What is still served in time, and whether the time to come back holds. */
import { type Bench, defineBench } from "../bench.ts";
import { atLeast } from "./bars.ts";
import { findSustainable, playStage, stageFlags, stagesResult } from "./stages.ts";

const OVERLOAD = 2;
const GOODPUT_RATIO_MIN = 0.9;
const ADMITTED_SHARE_MIN = 0.9;
/** A share of fewer clients that came back says nothing. */
const RETURNS_MIN = 20;
/** Who obeys comes back so often at most; and so long it may take until all have been served. */
const RETURNS_MAX = 20;
const DRAIN_S = 600;

/** Goodput. */
export const overloadBench: Bench = defineBench({
  summary:
    "Goodput (turns within the objectives per second) at twice the sustainable load, against the sustainable load: the largest one tried at which\n" +
    "nobody is refused and 95 % of the turns meet the objectives. Clients say how long they would wait for a first token. Bar: at least 0.9.",
  flags: stageFlags,
  async run(values, context) {
    const stages = await findSustainable(values, context);
    const sustainable = stages.at(-1)!;
    const load = { rate: OVERLOAD * sustainable.ratePerS!, "first-token-max": values["first-token-objective"] };
    const twice = await playStage({ name: "twice as much", values, load, context });
    const bars = [
      atLeast(
        "goodput at twice the sustainable load over goodput at it",
        twice.goodTurnsPerS / sustainable.goodTurnsPerS,
        GOODPUT_RATIO_MIN,
      ),
    ];
    return stagesResult(context, { values, stages: [...stages, twice], bars });
  },
});

/** Times to come back. */
export const retryAfterBench: Bench = defineBench({
  summary:
    "Twice the sustainable load; clients that are refused come back when Retry-After tells them to, with the same request.\n" +
    "Bar: at least 90 % of those that came back are then taken in.",
  flags: stageFlags,
  async run(values, context) {
    const stages = await findSustainable(values, context);
    const load = {
      ...{ rate: OVERLOAD * stages.at(-1)!.ratePerS!, drain: DRAIN_S, "turn-timeout": DRAIN_S },
      "obey-retry-after": RETURNS_MAX,
    };
    const twice = await playStage({ name: "twice as much, obedient", values, load, context });
    const { told, cameBack, admitted } = twice.retryAfter;
    context.print(`${told} were told to wait, ${cameBack} came back, ${admitted} of them were then taken in`);
    const bars = [
      atLeast("clients that came back", cameBack, RETURNS_MIN),
      atLeast("of those, taken in", cameBack === 0 ? undefined : admitted / cameBack, ADMITTED_SHARE_MIN),
    ];
    return stagesResult(context, { values, stages: [...stages, twice], bars });
  },
});
