/** What a fake engine does with one generation, step by step. JSON, because tests in workerd send it over HTTP. */
import type { EngineUsage, Span, TokenLogprob } from "../../../protocol/generate.ts";

/** One step; a script is a list of them. */
export type Step =
  | { do: "admit" }
  | { do: "tokens"; ids: number[]; logprobs?: TokenLogprob[] }
  /** A whole reply, an id every `gapMs`: of it, what stands behind the ids that the request brings. */
  | { do: "reply"; ids: number[]; gapMs: number }
  | { do: "wait"; ms: number }
  /** Says nothing until the test releases the engine (`FakeEngine.release`), once for each such step. */
  | { do: "hold" }
  /** Says nothing more until the connection is closed, or a cancel ends it; `spans` as in "done". */
  | { do: "hang"; spans?: Span[] }
  /** Says nothing more until the connection is closed, whatever it is asked. */
  | { do: "deaf" }
  /** `spans` absent: one dense span over prompt and reply. */
  | { do: "done"; reason: "stop" | "length" | "cancelled"; usage?: Partial<EngineUsage>; spans?: Span[] }
  | { do: "fail"; code: string; message: string; param?: string; retryAfterMs?: number }
  /** An HTTP status without frames. */
  | { do: "status"; status: number }
  | { do: "destroy" }
  | { do: "garbage" };

/** What became of one generation. */
export interface Call {
  request: {
    requestId: string;
    model: string;
    namespace: string;
    session?: { id: string; parentId?: string; bornMs?: number };
    tokens: number[];
    turnStart: number;
    replyStart?: number;
    spans: Span[];
    maxTokens: number;
    stopTokens: number[];
    sampling: Record<string, unknown>;
    selection: Record<string, unknown>;
    topLogprobs?: number;
  };
  authorization: string;
  startedMs: number;
  /** When the first ids were sent. */
  tokensMs?: number;
  /** When the edge closed the connection before the end. */
  abortedMs?: number;
  cancelledMs?: number;
  finished: boolean;
}
