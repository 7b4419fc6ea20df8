import { expect, it } from "vitest";
import { Gate } from "../../../engine/kv/gate.ts";
import { retried } from "../../../engine/persist/retry.ts";
import { systemClock } from "../../../engine/settings.ts";
import { StoreError, type StoreErrorCode } from "../../../storage/contract.ts";
import { withDeadline } from "../../../storage/deadline.ts";

const OPTIONS = { gate: new Gate(1), clock: systemClock, putMsMax: 20 };

it("tries a call again that stalled until its deadline, whose end a store hears of as that of its caller's patience", async () => {
  let tries = 0;
  const codes: unknown[] = [];
  const call = (signal: AbortSignal) =>
    withDeadline({ deadlineMs: 60_000, signal, what: "a put" }, () =>
      ++tries === 1 ? new Promise<string>(() => undefined) : Promise.resolve("stored"),
    ).catch((error: StoreError) => {
      codes.push(error.code);
      throw error;
    });
  expect(await retried(OPTIONS, call)).toBe("stored");
  expect([tries, codes]).toEqual([2, ["aborted"]]);
});

it.each<[StoreErrorCode, number]>([
  ["unavailable", 2],
  ["timeout", 2],
  ["denied", 1],
  ["corrupt", 1],
])("a call that is %s is tried %i times", async (code, times) => {
  let tries = 0;
  const call = async () => {
    tries += 1;
    throw new StoreError(code, "no");
  };
  await expect(retried(OPTIONS, call)).rejects.toMatchObject({ code });
  expect(tries).toBe(times);
});
