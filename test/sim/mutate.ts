/**
 * Loaded before everything else (`node --import`): takes one safeguard out of the source as it is read, named by QUIRE_SIM_MUTANT.
 * @throws {Error} when the mutant is unknown, or its text is not in the file exactly once: a mutant that changes nothing proves nothing.
 */
import { registerHooks } from "node:module";
import { MUTANTS } from "./mutants.ts";

const name = process.env.QUIRE_SIM_MUTANT;
const mutant = MUTANTS.find((candidate) => candidate.name === name);
if (!mutant) throw new Error(`no mutant ${name}; there are: ${MUTANTS.map((candidate) => candidate.name).join(", ")}`);
const target = new URL(`../../${mutant.file}`, import.meta.url).href;

registerHooks({
  load(url, context, nextLoad) {
    const loaded = nextLoad(url, context);
    if (url !== target) return loaded;
    const source =
      typeof loaded.source === "string" ? loaded.source : Buffer.from(loaded.source as Uint8Array).toString();
    const parts = source.split(mutant.find);
    if (parts.length !== 2) throw new Error(`mutant ${name}: its text is ${parts.length - 1} times in ${mutant.file}`);
    return { ...loaded, source: parts.join(mutant.replace) };
  },
});
