import { IncomingMessage, ServerResponse } from "node:http";
import { Socket } from "node:net";
import { expect, it } from "vitest";
import type { Engine } from "../../../engine/engine.ts";
import { engineHttpServer } from "../../../engine/http/http-server.ts";
import { encodeFrame } from "../../../protocol/frames.ts";
import { ENGINE_PATHS } from "../../../protocol/generate.ts";
import { request } from "../harness.ts";

const generation = request({ tokens: new Uint8Array(4) });

it("a client that leaves as the last byte of its request is read leaves nothing behind: its id is free again", async () => {
  let [submitted, cancelled] = [0, 0];
  const engine = {
    expect: () => () => undefined,
    submit() {
      submitted += 1;
      return {
        cancel() {
          cancelled += 1;
        },
      };
    },
  };
  const server = engineHttpServer({
    engine: engine as unknown as Engine,
    ...{ engineId: "eng", numericsId: "n", key: undefined, log: () => undefined },
    bounds: { modelId: "tiny", vocabularySize: 8, contextTokensMax: 64 },
    sessions: undefined as never,
  });
  for (let index = 0; index < 2; index++) {
    const incoming = Object.assign(new IncomingMessage(new Socket()), { method: "POST", url: ENGINE_PATHS.generate });
    const response = new ServerResponse(incoming);
    incoming.push(encodeFrame(generation));
    incoming.push(null);
    // As Node does when the connection ends.
    incoming.on("end", () => {
      response.destroyed = true;
      response.emit("close");
    });
    server.emit("request", incoming, response);
    await expect.poll(() => cancelled).toBe(index + 1);
  }
  expect(submitted).toBe(2);
});
