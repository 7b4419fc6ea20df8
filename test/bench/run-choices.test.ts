/** Which rows choose, which follow, when a benchmark decodes with shared choices. */
import { expect, it } from "vitest";
import { RunChoices } from "../../bench/run-choices.ts";
import { policyNamed } from "../../models/selection/registry.ts";

const plan = policyNamed("quest+reuse(4)").plan(256);

it("the first row of a run is asked for its choice, and those behind it follow", () => {
  const runs = new RunChoices();
  const roles: string[] = [];
  const decode = (position: number): void => {
    const { voters, choice, reportChoice } = runs.fieldsAt(position, plan);
    expect(voters).toBe("first");
    roles.push(reportChoice ? "chooses" : `by ${choice?.[0]}`);
    runs.keep(position, reportChoice ? Uint8Array.of(position) : undefined);
  };
  for (let position = 5; position < 13; position++) decode(position);
  expect(roles.splice(0)).toEqual(["chooses", "by 5", "by 5", "chooses", "by 8", "by 8", "by 8", "chooses"]);
  runs.clear();
  for (const position of [13, 14]) decode(position);
  expect(roles.splice(0), "another text").toEqual(["chooses", "by 13"]);
  // The window begins again: what row 14 knew of is behind this one.
  decode(13);
  expect(roles).toEqual(["chooses"]);
});

it("rows that each choose for themselves are told nothing of runs", () => {
  expect(new RunChoices().fieldsAt(5, policyNamed("quest").plan(256))).toEqual({});
  expect(new RunChoices().fieldsAt(5, { kind: "dense" })).toEqual({});
});
