import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { describe, expect, it } from "vitest";
import { readFrame } from "../../../engine/http/signed-door.ts";
import { encodeFrame } from "../../../protocol/frames.ts";

describe("the body of a request", () => {
  it("that its client leaves in the middle of is ended, which is nobody's failure; a whole one is read", async () => {
    const outcomes: Promise<unknown>[] = [];
    const server = createServer((request, response) => {
      const read = readFrame(request, undefined);
      outcomes.push(read.catch((error: unknown) => error));
      read.then(
        () => response.end(),
        () => response.destroy(),
      );
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const frame = encodeFrame({ hello: "engine" });
    const head = `POST / HTTP/1.1\r\nhost: e\r\nconnection: close\r\ncontent-length: ${frame.byteLength}\r\n\r\n`;
    for (const byteCount of [0, 1, frame.byteLength - 1, frame.byteLength]) {
      const socket = connect(port, "127.0.0.1");
      const asked = once(server, "request");
      socket.write(head);
      await asked;
      if (byteCount === frame.byteLength) {
        socket.resume().end(frame);
        await once(socket, "close");
      } else {
        socket.write(frame.subarray(0, byteCount));
        socket.destroy();
      }
    }
    const read = await Promise.all(outcomes);
    expect(read).toHaveLength(4);
    for (const left of read.slice(0, 3)) expect(left).toMatchObject({ name: "QuireError", code: "cancelled" });
    expect(read[3]).toEqual({ hello: "engine" });
    server.close();
  });
});
