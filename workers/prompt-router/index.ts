/** The prompt router as a Worker of its own: its runtime is larger than all of the edge. It has no address; the edge calls it by a binding. */
import { WorkerEntrypoint } from "cloudflare:workers";
import { openClassifier } from "./classifier.ts";
import type { PromptRouterService, RouterAnswer } from "./contract.ts";

// While the Worker starts: a request that began it might be gone before it is done, and the next one would wait in vain.
const classifier = await openClassifier();

/** Answers the edge's binding; requests from anywhere else find nothing. */
export default class PromptRouter extends WorkerEntrypoint implements PromptRouterService {
  override fetch(): Response {
    return new Response(null, { status: 404 });
  }

  choose(features: Float32Array): Promise<RouterAnswer> {
    return classifier.choose(features);
  }
}
