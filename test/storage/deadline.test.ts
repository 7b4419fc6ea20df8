import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { Gate, withDeadline } from "../../storage/deadline.ts";

const never = new AbortController().signal;
const forever = (): Promise<never> => new Promise(() => {});

describe("withDeadline", () => {
  it("gives what the call gives, and throws what it throws", async () => {
    const options = { deadlineMs: 1_000, what: "call" };
    expect(await withDeadline(options, async () => 7)).toBe(7);
    await expect(withDeadline(options, () => Promise.reject(new Error("own")))).rejects.toThrow("own");
  });

  it("settles at the deadline or the caller's abort, also when the call never ends", async () => {
    const timeout = withDeadline({ deadlineMs: 20, what: "call" }, forever);
    await expect(timeout).rejects.toMatchObject({ name: "StoreError", code: "timeout" });
    const controller = new AbortController();
    const aborted = withDeadline({ deadlineMs: 10_000, signal: controller.signal, what: "call" }, forever);
    controller.abort(new Error("the client went away"));
    await expect(aborted).rejects.toMatchObject({ code: "aborted", cause: controller.signal.reason });
    let began = false;
    const late = withDeadline({ deadlineMs: 10, signal: AbortSignal.abort(), what: "call" }, async () => {
      began = true;
    });
    await expect(late).rejects.toMatchObject({ code: "aborted" });
    expect(began).toBe(false);
  });

  it("tells the call by its signal", async () => {
    let seen: AbortSignal | undefined;
    const call = withDeadline({ deadlineMs: 10, what: "call" }, (signal) => {
      seen = signal;
      return forever();
    });
    await expect(call).rejects.toMatchObject({ code: "timeout" });
    expect(seen?.aborted).toBe(true);
    expect(seen?.reason).toMatchObject({ code: "timeout" });
  });
});

describe("Gate", () => {
  it("lets tasks through in order, never more than it may, and survives failures", async () => {
    const gate = new Gate(2);
    const order: number[] = [];
    let running = 0;
    const results = await Promise.allSettled(
      Array.from({ length: 12 }, (_, i) =>
        gate.run(never, async () => {
          order.push(i);
          expect(++running).toBeLessThanOrEqual(2);
          await new Promise((resolve) => setTimeout(resolve, 1));
          running--;
          if (i % 3 === 0) throw new Error("failed");
          return i;
        }),
      ),
    );
    expect(order).toEqual(order.toSorted((a, b) => a - b));
    expect(results.filter(({ status }) => status === "rejected")).toHaveLength(4);
    expect(await gate.run(never, async () => "open")).toBe("open");
  });

  it("gives up a place in the queue on abort, without letting two in for it", async () => {
    const gate = new Gate(1);
    let release = (): void => {};
    const first = gate.run(never, () => new Promise<void>((resolve) => (release = resolve)));
    const controller = new AbortController();
    const second = gate.run(controller.signal, async () => "second");
    const third = gate.run(never, async () => "third");
    controller.abort(new Error("gave up"));
    await expect(second).rejects.toThrow("gave up");
    release();
    await first;
    expect(await third).toBe("third");
    // Its turn comes and its signal has fired: the place goes on to the next.
    const aborted = gate.run(AbortSignal.abort(new Error("late")), async () => "never");
    await expect(aborted).rejects.toThrow("late");
    expect(await gate.run(never, async () => "still open")).toBe("still open");
    expect(() => new Gate(0)).toThrow(AssertionError);
  });
});
