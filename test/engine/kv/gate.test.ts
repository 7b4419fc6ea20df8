import { expect, it } from "vitest";
import { Gate, type GateClass } from "../../../engine/kv/gate.ts";
import { uniform } from "../tiny-model.ts";

it("runs at most its limit, fill within its share, demand first, each class in order of arrival", async () => {
  for (let seed = 0; seed < 40; seed++) {
    const next = uniform(seed);
    const [limit, fillLimit] = [1 + Math.floor(next() * 4), 1 + Math.floor(next() * 2)];
    const gate = new Gate(limit, Math.min(limit, fillLimit));
    const started: { kind: GateClass; order: number; demandWaited: boolean }[] = [];
    const waiting = { demand: 0, fill: 0 };
    const running = { demand: 0, fill: 0 };
    const finish: (() => void)[] = [];
    const all: Promise<unknown>[] = [];
    for (let order = 0; order < 30; order++) {
      const kind: GateClass = next() < 0.5 ? "demand" : "fill";
      const fails = next() < 0.2;
      waiting[kind] += 1;
      const run = gate.run(kind, async () => {
        waiting[kind] -= 1;
        running[kind] += 1;
        expect(running.demand + running.fill).toBeLessThanOrEqual(limit);
        expect(running.fill).toBeLessThanOrEqual(Math.min(limit, fillLimit));
        started.push({ kind, order, demandWaited: waiting.demand > 0 });
        await new Promise<void>((resolve) => finish.push(resolve));
        running[kind] -= 1;
        if (fails) throw new Error(`task ${order}`);
        return order;
      });
      all.push(fails ? expect(run).rejects.toThrow(`task ${order}`) : expect(run).resolves.toBe(order));
      if (next() < 0.4) finish.splice(Math.floor(next() * finish.length), 1)[0]?.();
      if (next() < 0.5) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(gate.waitingCount).toBe(waiting.demand + waiting.fill);
    while (running.demand + running.fill + waiting.demand + waiting.fill > 0) {
      finish.shift()?.();
      await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(all);
    for (const kind of ["demand", "fill"] as const) {
      const orders = started.filter((task) => task.kind === kind).map((task) => task.order);
      expect(orders, `seed ${seed}: ${kind} in order`).toEqual([...orders].sort((a, b) => a - b));
    }
    expect([gate.runningCount, gate.waitingCount]).toEqual([0, 0]);
  }
});

it("lets demand pass fill that came before it", async () => {
  const gate = new Gate(1);
  const order: string[] = [];
  let open = () => {};
  const first = gate.run("fill", () => new Promise<void>((resolve) => (open = resolve)));
  const rest = [
    gate.run("fill", async () => void order.push("fill")),
    gate.run("demand", async () => void order.push("demand")),
  ];
  open();
  await Promise.all([first, ...rest]);
  expect(order).toEqual(["demand", "fill"]);
});

it("takes fill that is raised for demand, behind what waits of that", async () => {
  const gate = new Gate(2, 1);
  const order: string[] = [];
  const ends: (() => void)[] = [];
  const task = (name: string) => () => {
    order.push(name);
    return new Promise<void>((resolve) => ends.push(resolve));
  };
  const all = ["one", "two", "three"].map((name) => gate.run("fill", task(name), name));
  all.push(gate.run("demand", task("demanded")), gate.run("demand", task("demanded next")));
  expect(order, "fill has one place of two").toEqual(["one", "demanded"]);
  gate.raise("three");
  gate.raise("one");
  gate.raise("nobody");
  while (gate.runningCount > 0) {
    ends.shift()?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(all);
  expect(order).toEqual(["one", "demanded", "demanded next", "three", "two"]);
  expect([gate.runningCount, gate.waitingCount]).toEqual([0, 0]);
});

it("counts what was raised as demand: fill keeps its own places", async () => {
  const gate = new Gate(4, 1);
  let fillCount = 0;
  const ends: (() => void)[] = [];
  const all = ["a", "b", "c", "d"].map((name) =>
    gate.run(
      "fill",
      () => {
        fillCount += 1;
        return new Promise<void>((resolve) => ends.push(resolve));
      },
      name,
    ),
  );
  await new Promise((resolve) => setImmediate(resolve));
  expect(fillCount).toBe(1);
  gate.raise("d");
  gate.raise("b");
  await new Promise((resolve) => setImmediate(resolve));
  expect(fillCount, "two go as demand, beside the one that fills").toBe(3);
  ends.splice(1).forEach((end) => void end());
  await new Promise((resolve) => setImmediate(resolve));
  expect(fillCount, "the one that fills has not ended").toBe(3);
  for (; gate.runningCount > 0; await new Promise((resolve) => setImmediate(resolve)))
    ends.splice(0).forEach((end) => void end());
  await Promise.all(all);
});
