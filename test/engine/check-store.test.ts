/** What an engine makes of its page store before it says that it is ready. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { startEngineServer } from "../../engine/server.ts";
import { HOUSE_0_SERVER } from "./house-server.ts";

/** A bucket's server that answers every request alike. */
async function bucketThat(status: number, code: string): Promise<string> {
  const server = createServer((_request, response) => {
    response.writeHead(status, { "content-type": "application/xml" }).end(`<Error><Code>${code}</Code></Error>`);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const logged: { event: string; fields: Record<string, unknown> }[] = [];
const startAt = (endpoint: string) =>
  startEngineServer({
    ...HOUSE_0_SERVER,
    storeUrl: `s3://bucket?endpoint=${encodeURIComponent(endpoint)}`,
    env: { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret" },
    log: (event, fields) => void logged.push({ event, fields }),
  });

describe("an engine whose page store refuses it", () => {
  it.each([
    [403, "SignatureDoesNotMatch"],
    [403, "InvalidAccessKeyId"],
    [404, "NoSuchBucket"],
  ])("does not start: %i %s", async (status, code) => {
    await expect(startAt(await bucketThat(status, code))).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringMatching(new RegExp(`refuses this engine .*${status} ${code}.*address or its credentials`)),
    });
  });
});

describe("an engine whose page store does not answer", () => {
  it("says so, and starts", async () => {
    logged.length = 0;
    const server = await startAt("http://no-such-host.invalid");
    expect(logged).toEqual([
      {
        event: "store.check-failed",
        fields: { error: expect.stringMatching(/got no answer from no-such-host.invalid \(ENOTFOUND\)/) },
      },
    ]);
    await server.stop(0);
  });

  it("says nothing where it answers that an object is not there", async () => {
    logged.length = 0;
    const server = await startAt(await bucketThat(404, "NoSuchKey"));
    expect(logged).toEqual([]);
    await server.stop(0);
  });
});
