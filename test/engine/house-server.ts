import type { EngineServerOptions } from "../../engine/server.ts";

/** A small engine process on the committed model of a few hundred kilobytes, with a store of its own. */
export const HOUSE_0_SERVER: EngineServerOptions = {
  host: "127.0.0.1",
  port: 0,
  modelFolder: "weights/house-0",
  storeUrl: "memory:",
  env: {},
  device: "wasm",
  threads: 1,
  weightEncoding: "int8",
  kvEncoding: "int8",
  summaryKinds: ["min-max"],
  poolBytes: 16 * 2 ** 20,
  contextTokensMax: 2048,
  log: () => {},
};
