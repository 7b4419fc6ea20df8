/** Wraps a device to see what a runner does with its buffers, and to withhold what only a CPU device can tell. */
import type { Device, DeviceBuffer, StepRecorder } from "../../kernels/contract.ts";

/** A device and what has been seen of it. */
export interface WatchedDevice {
  device: Device;
  /** Buffers allocated and not released, by label. */
  readonly live: ReadonlySet<DeviceBuffer>;
  /** Names of the ops of the last step, in order, as `op` or `op:layer`. */
  readonly ops: readonly string[];
}

/** @param options.deferred the recorder never says whether a slice has missed, as on a GPU. */
export function watchDevice(inner: Device, options: { deferred: boolean }): WatchedDevice {
  const live = new Set<DeviceBuffer>();
  const ops: string[] = [];
  const device = overlay(inner, {
    buffer(label: string, bytes: number) {
      const buffer = inner.buffer(label, bytes);
      live.add(buffer);
      return buffer;
    },
    release(buffer: DeviceBuffer) {
      if (!live.delete(buffer)) throw new Error(`${buffer.label} was released twice`);
      inner.release(buffer);
    },
    begin(slices: Parameters<Device["begin"]>[0]) {
      ops.length = 0;
      return watchRecorder(inner.begin(slices), ops, options.deferred);
    },
  });
  return { device, live, ops };
}

function watchRecorder(inner: StepRecorder, ops: string[], deferred: boolean): StepRecorder {
  return new Proxy(inner, {
    get(target, name) {
      const value = Reflect.get(target, name, target) as unknown;
      if (typeof value !== "function") return value;
      if (name === "hasMissed" && deferred) return () => undefined;
      return (...args: [{ layer?: number }]) => {
        const layer = args[0]?.layer;
        ops.push(layer === undefined ? String(name) : `${String(name)}:${layer}`);
        return Reflect.apply(value, target, args);
      };
    },
  });
}

function overlay<T extends object>(inner: T, methods: Partial<Record<keyof T, unknown>>): T {
  return new Proxy(inner, {
    get(target, name) {
      if (Object.hasOwn(methods, name)) return methods[name as keyof T];
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
