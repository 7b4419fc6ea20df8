/** Serves the conformance page on this machine. As a program: `npm run conformance:page`, then open the printed address in any browser with WebGPU. */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { rolldown } from "rolldown";

const folder = import.meta.dirname;

/** A running server, until it is closed. */
export interface PageServer {
  url: string;
  close(): Promise<void>;
}

/** Bundles the page's script and serves it with the page on a port of 127.0.0.1, where a browser allows WebGPU without TLS. */
export async function serveConformancePage(port = 0): Promise<PageServer> {
  const files: Record<string, { type: string; body: string }> = {
    "/": { type: "text/html; charset=utf-8", body: await readFile(join(folder, "index.html"), "utf8") },
    "/page.js": { type: "text/javascript", body: await bundle() },
  };
  const server = createServer((request, response) => {
    const file = files[new URL(request.url ?? "/", "http://page").pathname];
    if (file === undefined) return void response.writeHead(404).end();
    response.writeHead(200, { "content-type": file.type, "cache-control": "no-store" }).end(file.body);
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

/** The page's script in one piece, with {@link file://./suite-in-page.ts} as its vitest. */
async function bundle(): Promise<string> {
  const build = await rolldown({
    input: join(folder, "page.ts"),
    platform: "browser",
    resolve: { alias: { vitest: join(folder, "suite-in-page.ts") } },
    // Dawn's package is for Node; in a browser `navigator.gpu` is there.
    external: ["webgpu"],
  });
  const { output } = await build.generate({ format: "esm", codeSplitting: false });
  await build.close();
  return output[0].code;
}

if (process.argv[1] === import.meta.filename) {
  const { url } = await serveConformancePage(Number(process.env.PORT ?? 0));
  process.stdout.write(`kernel conformance: ${url} (Ctrl-C ends)\n`);
}
