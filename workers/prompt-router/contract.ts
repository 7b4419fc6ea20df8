/** What the Worker and the prompt router say to each other: numbers in, a choice out. No text of a prompt crosses the binding. */

/** What the router answers. The Worker checks every field of it. */
export interface RouterAnswer {
  /** Id of the model it was trained for. */
  model: string;
  /** A selection configuration and its budget, `dense` included. */
  policy: string;
  budgetTokens: number;
}

/** The binding `PROMPT_ROUTER`. */
export interface PromptRouterService {
  /** `features`: what `features.ts` makes of a prompt, `[FEATURE_COUNT]`. Rejects for anything else. */
  choose(features: Float32Array): Promise<RouterAnswer>;
}
