/** {@link TokenizerSession} as a Worker: one request, one call. */
import { type Implementation, TokenizerSession } from "./session.ts";

const session = new TokenizerSession();

/** `POST /open?implementation=`, `POST /texts`, `POST /encode?index=&times=`. */
export default {
  async fetch(request: Request): Promise<Response> {
    const { pathname, searchParams } = new URL(request.url);
    switch (pathname) {
      case "/open":
        session.open(searchParams.get("implementation") as Implementation, await request.arrayBuffer());
        return Response.json({});
      case "/texts":
        session.setTexts((await request.json()) as string[]);
        return Response.json({});
      case "/encode":
        return Response.json(session.encode(Number(searchParams.get("index")), Number(searchParams.get("times"))));
      default:
        return new Response(null, { status: 404 });
    }
  },
};
