/** Asks the prompt router about a chat body, one path for each part of the way, so that their costs can be told apart (`npm run bench -- router`). */
import { readJsonObject } from "../../workers/body.ts";
import type { PromptRouterService } from "../../workers/prompt-router/contract.ts";
import { promptFeatures } from "../../workers/prompt-router/features.ts";
import { validateChat } from "../../workers/validate-chat.ts";

const selectionDefaults = { policy: "auto", budgetTokens: 0, exact: false } as const;

const paths: Readonly<Record<string, (features: () => Float32Array, router: PromptRouterService) => unknown>> = {
  "/body": () => "ok",
  "/features": (features) => [...features()],
  "/choose": (features, router) => router.choose(features()),
  "/broken": (_, router) => router.choose(new Float32Array(3)),
};

/** The Worker. */
export default {
  async fetch(request, env) {
    const part = paths[new URL(request.url).pathname];
    if (!part) return new Response(null, { status: 404 });
    const body = await readJsonObject(request);
    const { messages } = validateChat(body, { headers: new Headers(), selectionDefaults, randomSeed: () => 0 });
    try {
      return Response.json(await part(() => promptFeatures(messages), env.PROMPT_ROUTER));
    } catch (thrown) {
      return Response.json({ error: String(thrown) }, { status: 500 });
    }
  },
} satisfies ExportedHandler<{ PROMPT_ROUTER: PromptRouterService }>;
