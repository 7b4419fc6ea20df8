import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, expect, it } from "vitest";
import { engineRest } from "../../bench/load/rest.ts";

const names = [
  "running_sequences",
  "queued_requests",
  "store_pending_bytes",
  "pool_blocks",
  "pool_free_blocks",
  "pool_held_blocks",
  "pool_held_slots",
];
const idle = names.map((name) => `quire_${name} 0`).join("\n");
const server = createServer((_, answer) => answer.end(idle));
afterAll(() => void server.close());

it("an engine that is just being started again is asked again, and one that stays away ends the run", async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  const engines = [{ name: "engine 1", url: `http://127.0.0.1:${port}` }];
  await expect(engineRest(engines, AbortSignal.abort())).rejects.toThrow("fetch failed");
  const rest = engineRest(engines, new AbortController().signal);
  setTimeout(() => server.listen(port, "127.0.0.1"), 400);
  expect(await rest).toEqual([{ name: "engine 1", busy: 0, leakedBlocks: 0, leakedSlots: 0 }]);
});
