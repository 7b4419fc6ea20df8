/**
 * A turn between the Worker and its session: a request with the job, a response with the stream of events. A fetch and no method call,
 * because the stream of a response passes between the two natively: in a bare workerd a call that returns a stream takes 0.2 ms more.
 */
import type { TurnAnswer, TurnFeed, TurnJob } from "../turn-job.ts";

/** What a streaming answer says beside its stream; other answers are JSON, in the body. */
const FACTS_HEADER = "x-quire-turn";

type Streaming = Extract<TurnAnswer, { status: "streaming" }>;

/** The Worker's end. @throws whatever the session throws, and when its object is gone */
export async function openTurn(session: Fetcher, job: TurnJob): Promise<TurnAnswer> {
  const response = await session.fetch("https://session/turn", { method: "POST", body: JSON.stringify(job) });
  const facts = response.headers.get(FACTS_HEADER);
  if (facts === null || response.body === null) return response.json();
  const answer = JSON.parse(decodeURIComponent(facts)) as Omit<Streaming, keyof Pick<TurnFeed, "stream">>;
  return { ...answer, stream: response.body };
}

/** The session's end. Rejects as `run` does. */
export async function answerTurn(request: Request, run: (job: TurnJob) => Promise<TurnAnswer>): Promise<Response> {
  const answer = await run(await request.json<TurnJob>());
  if (answer.status !== "streaming") return Response.json(answer);
  const { stream, ...facts } = answer;
  return new Response(stream, { headers: { [FACTS_HEADER]: encodeURIComponent(JSON.stringify(facts)) } });
}
