/** The chat page, served from the Worker itself. */
import appJs from "../web/app.js";
import indexHtml from "../web/index.html";
import styleCss from "../web/style.css";

const FILES = {
  "index.html": { text: indexHtml, type: "text/html; charset=utf-8" },
  "app.js": { text: appJs, type: "text/javascript; charset=utf-8" },
  "style.css": { text: styleCss, type: "text/css; charset=utf-8" },
} as const;

/** One file of the page. Nothing but the page's own files may run, and it talks to its own origin only. */
export function playground(name: keyof typeof FILES): Response {
  const { text, type } = FILES[name];
  return new Response(text, {
    headers: {
      "content-type": type,
      "cache-control": "no-cache",
      "content-security-policy":
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
    },
  });
}
