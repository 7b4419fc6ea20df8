import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const path = (name: string): string => fileURLToPath(new URL(`../../web/${name}`, import.meta.url));
const [html, app, css] = ["index.html", "app.js", "style.css"].map((name) => readFileSync(path(name), "utf8")) as [
  string,
  string,
  string,
];
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((match) => match[1] as string);

describe("the playground is three static files", () => {
  it("that ask nobody else for anything", () => {
    expect(all(html, /(?:src|href)="([^"]*)"/g).sort()).toEqual(["#input", "/app.js", "/style.css", "data:,"]);
    for (const text of [html, app, css]) expect(text).not.toMatch(/https?:|url\(|@import|\bimport\b[ (]/);
  });

  it("that a strict content security policy allows", () => {
    expect(html).toContain("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'");
    expect(html).not.toMatch(/<script(?![^>]*src=)|<style|\sstyle=|\son\w+=/);
    expect(app).not.toMatch(/innerHTML|outerHTML|insertAdjacentHTML|\beval\b|new Function/);
  });

  it("whose script parses and finds every element it asks for", () => {
    expect(spawnSync(process.execPath, ["--check", path("app.js")]).status).toBe(0);
    const ids = new Set(all(html, /\sid="([^"]+)"/g));
    const listed = all(app, /"([a-z -]+)"\.split\(" "\)/g).flatMap((list) => list.split(" "));
    const looped = all(app, /of \[((?:"[a-z-]+"(?:, )?)+)\]\) byId/g).flatMap((list) => all(list, /"([a-z-]+)"/g));
    const asked = [...all(app, /byId\("([^"]+)"\)/g), ...listed, ...looped];
    expect(asked.length).toBeGreaterThan(25);
    expect(asked.filter((id) => !ids.has(id))).toEqual([]);
  });

  it("whose every field has a label", () => {
    const fields = all(html, /<(?:input|select|textarea) id="([^"]+)"/g);
    expect(fields.length).toBeGreaterThan(8);
    for (const field of fields) {
      const inside = new RegExp(`<label[^>]*><input id="${field}"`);
      expect(
        html.includes(`<label for="${field}">`) || html.includes(`for="${field}"`) || inside.test(html),
        field,
      ).toBe(true);
    }
  });

  it("whose figures stay within their panel: the name of a selection has no space to be cut at", () => {
    expect(css).toMatch(/\ndd \{[^}]*overflow-wrap: anywhere/);
    expect(css).toMatch(/\ndl \{[^}]*grid-template-columns: [^;]*fit-content/);
  });

  it("whose passage is long enough to be more than one segment and holds no fact of its own", () => {
    const passage = html.slice(html.indexOf('<template id="passage">'), html.indexOf("</template>"));
    expect(passage.length).toBeGreaterThan(2_560);
    expect(passage).not.toContain("The code of");
  });
});
