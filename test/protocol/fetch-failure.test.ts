import { expect, it } from "vitest";
import { fetchFailure } from "../../protocol/fetch-failure.ts";

const reasonOf = async (url: string, signal?: AbortSignal): Promise<string> =>
  await fetch(url, signal === undefined ? {} : { signal }).then(() => "answered", fetchFailure);

it("says why Node's own fetch failed", async () => {
  expect(await reasonOf("http://no-such-host.invalid/")).toBe("ENOTFOUND");
  expect(await reasonOf("http://127.0.0.1:9999/", AbortSignal.abort(new DOMException("late", "TimeoutError")))).toBe(
    "TimeoutError",
  );
  // A port that no browser would ask either.
  expect(await reasonOf("http://127.0.0.1:1/")).toBe("bad port");
});

it("has a word for whatever is thrown", () => {
  expect(fetchFailure(new SyntaxError("<html>"))).toBe("SyntaxError");
  expect(fetchFailure("gone")).toBe("gone");
  expect(fetchFailure(undefined)).toBe("undefined");
});
