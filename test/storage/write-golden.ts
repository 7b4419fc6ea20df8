/** Writes the golden files anew, after a format has been given a new version: `node test/storage/write-golden.ts`. */
import { writeFileSync } from "node:fs";
import { goldenObjects, goldenPath } from "./golden.ts";

for (const [name, bytes] of goldenObjects()) writeFileSync(goldenPath(name), bytes);
