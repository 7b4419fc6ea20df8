// One op at a time: the main thread takes it from its queue and publishes it, every thread claims tasks from one counter, the main thread waits for the last.
import { ARGS, FAILED, FINISHED, GENERATION, MAIN_SLEEPS, OP, REMAINING, SLEEPERS, STOPPED, TASK_COUNT } from "./control";
import { runTask } from "./tasks";

/**
 * Looks before the main thread sleeps, some 0.2 ms: longer than the last task of an op of a decode step. Of 16 sequences a task of attention takes 35 us, one
 * of the head 25; with 20,000 looks the main thread slept 2.5 times a step, and was woken too late each time.
 */
const MAIN_SPIN_COUNT: i32 = 200000;
/**
 * Looks before a worker sleeps, some 0.1 ms: longer than the ops that the host runs alone between two that are shared, because waking takes
 * as long as a matrix. With 4,000 a decode step of bench-213m took 12.3 ms on two threads, with 100,000 10.3.
 */
const WORKER_SPIN_COUNT: i32 = 100000;
const SLICE_NS: i64 = 100_000_000;

/**
 * Runs the ops in [at, end), one after the other. Each is {op, task count, 1 if workers take part, bytes of arguments}, then arguments, padded to 16
 * bytes. Returns 0 when all are finished, 1 when a worker has died, 2 when nothing was finished for `stallSlices` tenths of a second; ops
 * behind one that failed do not run.
 */
export function runQueue(at: usize, end: usize, workerCount: i32, stallSlices: i32): i32 {
  while (at < end) {
    const args = at + 16;
    const argBytes = <usize>load<u32>(at, 12);
    for (let i: usize = 0; i < argBytes; i += 16) v128.store(ARGS + i, v128.load(args + i));
    const result = dispatch(load<i32>(at), load<i32>(at, 4), load<i32>(at, 8) == 0 ? 0 : workerCount, stallSlices);
    if (result != 0) return result;
    at = args + argBytes;
  }
  return 0;
}

/** Runs `taskCount` tasks of `op`, whose arguments are in the control page. Returns what {@link runQueue} does. */
function dispatch(op: i32, taskCount: i32, workerCount: i32, stallSlices: i32): i32 {
  if (workerCount == 0 || taskCount == 1) {
    for (let task = 0; task < taskCount; task++) runTask(op, task, 0);
    return 0;
  }
  store<i32>(OP, op);
  store<i32>(TASK_COUNT, taskCount);
  atomic.store<i32>(FINISHED, 0);
  atomic.store<i32>(REMAINING, taskCount);
  atomic.add<i32>(GENERATION, 1);
  if (atomic.load<i32>(SLEEPERS) > 0) atomic.notify(GENERATION, workerCount);
  claimTasks(0);
  return waitForAll(taskCount, stallSlices);
}

/** Runs tasks until the stop flag is up. For workers; `thread` counts from 1. */
export function workerLoop(thread: i32): void {
  let seen = 0;
  while (atomic.load<i32>(STOPPED) == 0) {
    let now = atomic.load<i32>(GENERATION);
    for (let spin = 0; now == seen && spin < WORKER_SPIN_COUNT; spin++) now = atomic.load<i32>(GENERATION);
    if (now == seen) {
      atomic.add<i32>(SLEEPERS, 1);
      atomic.wait<i32>(GENERATION, seen, -1);
      atomic.sub<i32>(SLEEPERS, 1);
      continue;
    }
    seen = now;
    claimTasks(thread);
  }
}

// A claim holds the op in place: the main thread cannot publish the next one before this task is counted as finished.
function claimTasks(thread: i32): void {
  for (;;) {
    const remaining = atomic.sub<i32>(REMAINING, 1);
    if (remaining <= 0) return;
    const taskCount = load<i32>(TASK_COUNT);
    runTask(load<i32>(OP), taskCount - remaining, thread);
    if (atomic.add<i32>(FINISHED, 1) + 1 == taskCount && atomic.load<i32>(MAIN_SLEEPS) != 0) {
      atomic.notify(FINISHED, 1);
    }
  }
}

function waitForAll(taskCount: i32, stallSlices: i32): i32 {
  for (let spin = 0; spin < MAIN_SPIN_COUNT; spin++) {
    if (atomic.load<i32>(FINISHED) == taskCount) return 0;
  }
  let result = 0;
  let idleSlices = 0;
  atomic.store<i32>(MAIN_SLEEPS, 1);
  for (;;) {
    const finished = atomic.load<i32>(FINISHED);
    if (finished == taskCount) break;
    if (atomic.load<i32>(FAILED) != 0) {
      result = 1;
      break;
    }
    // 2 is a timeout: nothing changed for a whole slice.
    idleSlices = <i32>atomic.wait<i32>(FINISHED, finished, SLICE_NS) == 2 ? idleSlices + 1 : 0;
    if (idleSlices >= stallSlices) {
      result = 2;
      break;
    }
  }
  atomic.store<i32>(MAIN_SLEEPS, 0);
  return result;
}
