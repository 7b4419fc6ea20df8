/** The edge in workerd. Secrets are bindings here; engines are scripted (fake-engine/). */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";
import { leaveOutNoise } from "../frame/workerd-noise.ts";

const keyHash = (key: string) => createHash("sha256").update(key).digest("hex");
const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

leaveOutNoise(process.stderr);

/** `vitest run -c test/workers/vitest.config.ts` */
export default defineConfig({
  root: path("../.."),
  plugins: [
    cloudflareTest({
      wrangler: { configPath: path("../../wrangler.toml") },
      miniflare: {
        bindings: {
          QUIRE_API_KEYS: JSON.stringify({
            [keyHash("key-of-a")]: { tenant: "a" },
            [keyHash("key-of-b")]: { tenant: "b" },
            [keyHash("key-of-c")]: { tenant: "c" },
            [keyHash("key-of-operator")]: { tenant: "operators", scopes: ["keys"] },
            [keyHash("key-that-reads")]: { tenant: "a", scopes: ["sessions:read"] },
            [keyHash("key-of-few-requests")]: { tenant: "few-requests", limits: { requests_per_minute: 3 } },
            [keyHash("key-of-few-tokens")]: { tenant: "few-tokens", limits: { tokens_per_minute: 600 } },
            [keyHash("key-of-few-turns")]: { tenant: "few-turns", limits: { turns_concurrent: 2 } },
            [keyHash("key-of-two-turns")]: {
              tenant: "two-turns",
              limits: { requests_per_minute: 600, turns_concurrent: 2 },
            },
            [keyHash("key-of-eight-turns")]: {
              tenant: "eight-turns",
              limits: { requests_per_minute: 10, turns_concurrent: 8 },
            },
            [keyHash("key-that-ended")]: { tenant: "a", expires_s: 1_700_000_000 },
          }),
          // An engine that a test takes away does not come back.
          QUIRE_WAKE_WAIT_MS: "0",
          QUIRE_LIMITS: '{"requests_per_minute":100000,"turns_concurrent":1000}',
          QUIRE_TENANT_SALT: "salt for tests",
          QUIRE_ENGINE_KEY: "engine-key-for-tests",
        },
      },
    }),
  ],
  test: {
    name: "workers",
    include: ["test/workers/**/*.test.ts"],
    globalSetup: [path("./global-setup.ts")],
    maxWorkers: 1,
    // Names in the tests are unique, so files may share one workerd: starting one takes longer than most files.
    isolate: false,
    testTimeout: 15_000,
    hookTimeout: 30_000,
  },
});
