/** Quire's client library: Node, browsers and Workers; nothing beyond the platform. */
export {
  type ApiErrorFields,
  QuireAbortError,
  QuireApiError,
  QuireClientError,
  QuireConnectionError,
} from "./errors.ts";
export { type Model, Quire, type QuireOptions } from "./quire.ts";
export type { Reply } from "./reply.ts";
export type { CallOptions, Session, SessionOptions } from "./session.ts";
export { type SseEvent, SseParser } from "./sse.ts";
export type { FinishReason, Message, QuireUsage, SendOptions, Usage } from "./wire.ts";
