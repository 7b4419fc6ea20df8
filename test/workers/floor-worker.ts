/** The least that stands between a client and an engine: a Worker and one Durable Object, which do nothing (`npm run bench -- edge`). */
import { DurableObject } from "cloudflare:workers";

interface FloorEnv {
  BETWEEN: DurableObjectNamespace<Between>;
  ENGINE_URL: string;
}

/** Calls the engine and passes its answer on, as it is. */
export class Between extends DurableObject<FloorEnv> {
  async pass(): Promise<ReadableStream<Uint8Array>> {
    // As every object of the edge does that begins.
    this.ctx.storage.sql.exec("SELECT 1 FROM sqlite_master").toArray();
    const response = await fetch(`${this.env.ENGINE_URL}/v1/generate`, { method: "POST", body: "x" });
    return response.body ?? new Blob([]).stream();
  }
}

/** `/new` takes an object that was never there, everything else always the same one. */
export default {
  async fetch(request, { BETWEEN }) {
    await request.arrayBuffer();
    const name = new URL(request.url).pathname === "/new" ? crypto.randomUUID() : "same";
    return new Response(await BETWEEN.get(BETWEEN.idFromName(name)).pass());
  },
} satisfies ExportedHandler<FloorEnv>;
