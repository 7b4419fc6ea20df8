/**
 * Makes the folder that `tsc -p sdk/tsconfig.json` wrote (the first argument, else `dist`) a package of its own: `quire` with `quire/sdk` in it and
 * nothing else. Node runs no TypeScript of an installed package, and whoever talks to an edge needs neither engine nor weights.
 */
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const out = process.argv[2] ?? join(root, "dist");
const { name, version, license, type } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const description = "Client library of Quire: sessions, streams that survive their connection, selection.";
const exports = { "./sdk": { types: "./sdk/index.d.ts", default: "./sdk/index.js" } };
const fields = { name, version, description, license, type, sideEffects: false, engines: { node: ">=20" }, exports };
writeFileSync(join(out, "package.json"), `${JSON.stringify(fields, undefined, 2)}\n`);
copyFileSync(join(root, "LICENSE"), join(out, "LICENSE"));
