/** `npm run bench -- resume`: the first token of a turn on an engine that has just started, over a store far away. */
import { calibrationBeside } from "../../cli/calibration-beside.ts";
import { parseSelectionFlag, parseText } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { SummaryKind } from "../../kernels/contract.ts";
import { chooseSelection } from "../../models/selection/calibration.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { type BenchModel, openBenchModel } from "../decode/bench-model.ts";
import { contextsFlag, modelFlags, parseList } from "../decode/flags.ts";
import { type Column, renderTable } from "../table.ts";
import { type BarRow, barColumns, barRows, type EngineFigures, PAGES_THERE, STORED_BYTES } from "./bars.ts";
import { type Content, type ContentOptions, contentOf, fillContext } from "./content.ts";
import { engineReadyMs } from "./engine-ready.ts";
import { type BenchMode, type ResumeCase, type ResumeRow, Resumer, resumeRow, sessionBytes } from "./measure-resume.ts";
import { storeFilledSession } from "./stored-session.ts";
import { contentFlags, countFlag, linkFlags, turnFlags } from "./turn-flags.ts";
import { measureWriting } from "./writing.ts";

/** The model that ships, where it is asked beside another one. */
const HOUSE = { folder: "weights/house", contextTokens: 16_384 } as const;
/** What is measured beside the policy: layer 0 of bench-213m chooses for itself, layer 1 for itself and all others. */
const BESIDE = "quest+scope(layer)+group(64)+own-layers(1)+share(15)";
/** Of a model of another size the bars of milliseconds and bytes say nothing. */
const isOfHouse = ({ figure }: BarRow): boolean => figure === PAGES_THERE || figure.startsWith("decode speed, ");
const isOfSelection = ({ figure }: BarRow): boolean => figure !== STORED_BYTES;

const modes = ["recompute", "full", "lazy", "lazy-default", "resident"] as const;

function parseMode(text: string): BenchMode {
  const mode = modes.find((known) => known === text);
  if (mode === undefined) throw new UsageError(`must be some of ${modes.join(",")}`);
  return mode;
}

const flags = {
  ...modelFlags,
  ...contentFlags,
  "house-text": {
    help: `a text that the house model reads (${HOUSE.contextTokens} tokens, under what auto is there): which selected pages are there in default mode, where choices are a trained model's`,
    placeholder: "PATH",
    parse: parseText,
  },
  contexts: contextsFlag("2048,8192,32768"),
  modes: {
    help: `how the context comes back: ${modes.join(",")}`,
    placeholder: "LIST",
    fallback: "full,lazy,lazy-default,resident",
    parse: parseList(parseMode),
  },
  ...turnFlags({ turns: "the turn", budget: "2048" }),
  beside: {
    help: "a selection that is measured beside it at the longest context, with figures of its own; none: nothing is",
    placeholder: "NAME",
    fallback: BESIDE,
    parse: (text: string) => (text === "none" ? undefined : parseSelectionFlag(text)),
  },
  prompt: countFlag("tokens of the turn, and of the one before it", "64", { min: 1, max: 4_096 }),
  tokens: countFlag("tokens of the reply", "64", { min: 1, max: 4_096 }),
  ...linkFlags,
  stall: countFlag(
    "milliseconds for which a store answers nothing (0: no figures of writing and of starting)",
    "30000",
    {
      min: 0,
      max: 600_000,
    },
  ),
} as const;

const columns: readonly Column<ResumeRow>[] = [
  { header: "context", cell: (row) => String(row.context) },
  { header: "mode", align: "left", cell: (row) => row.mode },
  { header: "first token ms", cell: (row) => row.ttftMs.toFixed(0) },
  { header: "MB before it", cell: (row) => (row.bytesBeforeFirstToken / 1e6).toFixed(2) },
  { header: "of session %", cell: (row) => (100 * row.bytesShare).toFixed(1) },
  { header: "pages before", cell: (row) => String(row.pagesBeforeFirstToken) },
  { header: "missed before", cell: (row) => String(row.pagesMissedBefore) },
  { header: "missed", cell: (row) => String(row.pagesMissed) },
  { header: "ms/token after", cell: (row) => row.msPerToken.toFixed(2) },
  { header: "identical", align: "left", cell: (row) => (row.identical === undefined ? "-" : String(row.identical)) },
];

/** What a context gave. */
interface Measured {
  rows: ResumeRow[];
  storedShare: number;
}

interface Settings {
  modes: readonly BenchMode[];
  selection: ResumeCase["selection"];
  prompt: number;
  tokens: number;
  rtt: number;
  mbps: number;
}

/** The benchmark as the registry names it. */
export const resumeBench = defineBench({
  summary:
    "Stores a session, goes on with it for a turn, then runs its next turn on an engine that has nothing, over a store with a latency and a bandwidth.\n" +
    "Prints each mode, and at the longest context every figure that a resume is judged by, beside its bar; there also those of a selection in which a\n" +
    "choice serves several layers (--beside).",
  flags,
  async run(values, context) {
    const { prompt, tokens, rtt, mbps, stall } = values;
    // Ascending: the last one measured is the one that bars judge.
    const contexts = values.contexts.toSorted((a, b) => a - b);
    if (contexts.some((count) => count === 0 || count % 256 !== 0))
      throw new UsageError("--contexts: must be multiples of 256 (whole segments)");
    if (values.text !== undefined && values.model === undefined)
      throw new UsageError("--text: needs a --model that reads it");
    const selection = { policy: values.policy, budgetTokens: values.budget };
    const settings = { modes: values.modes, selection, prompt, tokens, rtt, mbps };
    const summary = summaryOf(selection);
    const { contextTokens } = HOUSE;
    const auto = chooseSelection(await calibrationBeside(HOUSE.folder), { contextTokens, budgetTokens: 0 });
    const { "house-text": houseText, ...others } = values;
    const asked: ModelValues = { ...others, contexts, settings, summary };
    const house: ModelValues = {
      ...{ ...asked, model: HOUSE.folder, text: houseText, textFlag: "--house-text", contexts: [contextTokens] },
      ...{ summary: summaryOf(auto), settings: { ...settings, selection: auto } },
    };
    const beside: ModelValues | undefined = values.beside && {
      ...{ ...asked, contexts: contexts.slice(-1) },
      ...{ summary: summaryOf({ policy: values.beside, budgetTokens: values.budget }, "--beside") },
      settings: { ...settings, selection: { policy: values.beside, budgetTokens: values.budget } },
    };
    // Texts are read before anything is measured: of one that is not there, or too short, nobody hears after ten minutes.
    const content = await contentOf(asked, tokensMaxOf(asked));
    const houseContent = houseText === undefined ? undefined : await contentOf(house, tokensMaxOf(house));
    const first = await measureModel(asked, content, context);
    const ofBeside = beside && (await measureModel(beside, content, context));
    const ofHouse = houseContent && (await measureModel(house, houseContent, context));
    // Last: nothing of a store that answered nothing is to bear on turns.
    const other = stall === 0 || context.signal.aborted ? undefined : await measureEngine(asked, stall, context);
    const besideBars = barsOf(ofBeside, isOfSelection).map(named(`${values.beside}`));
    const houseBars = barsOf(ofHouse, isOfHouse).map(named("house model"));
    const bars = [...barsOf(first, () => true, other), ...besideBars, ...houseBars];
    context.print("");
    for (const line of barTable(bars)) context.print(line);
    const [besideRows, houseRows] = [ofBeside?.rows ?? [], ofHouse?.rows ?? []];
    const ok = [...first.rows, ...besideRows, ...houseRows].every(({ identical }) => identical !== false);
    return { ok, data: { settings: values, device: first.device, rows: first.rows, besideRows, houseRows, bars } };
  },
});

/** What a selection scores. @throws {UsageError} for one that scores nothing. */
function summaryOf({ policy }: ResumeCase["selection"], flag = "--policy"): SummaryKind {
  const { summary } = policyNamed(policy);
  if (summary === undefined) throw new UsageError(`${flag}: must be one that scores pages`);
  return summary;
}

/** What is measured of one model. */
interface ModelValues extends ContentOptions {
  threads: number | undefined;
  contexts: readonly number[];
  settings: Settings;
  summary: SummaryKind;
}

/** What was measured of one model and selection. */
interface ModelFigures {
  rows: ResumeRow[];
  /** Stored bytes of a token against its K and V in f16, at the last context. */
  storedShare: number;
  device: string;
}

/** Figures of the last context against their bars. */
function barsOf(figures: ModelFigures | undefined, isOne: (bar: BarRow) => boolean, other?: EngineFigures): BarRow[] {
  if (figures === undefined) return [];
  const { rows, storedShare } = figures;
  const ofLast = rows.filter((row) => row.context === rows.at(-1)?.context);
  return barRows(ofLast, { storedShare, ...other }).filter(isOne);
}

function named(name: string): (bar: BarRow) => BarRow {
  return (bar) => ({ ...bar, figure: `${bar.figure}, ${name}` });
}

/** Of the longest context, with both turns behind it. */
function tokensMaxOf({ contexts, settings: { prompt, tokens } }: ModelValues): number {
  return Math.max(...contexts) + 2 * (prompt + tokens);
}

function openModelOf(values: ModelValues): Promise<BenchModel> {
  return openBenchModel({
    ...{ shape: values.shape, model: values.model, seed: values.seed, threads: values.threads },
    ...{ contextTokens: tokensMaxOf(values), summaryKinds: [values.summary], kvEncoding: "int8" },
  });
}

/** Every context of a model, printed as a table. */
async function measureModel(values: ModelValues, content: Content, context: BenchContext): Promise<ModelFigures> {
  const { contexts, settings } = values;
  const { rtt, mbps, selection } = settings;
  const model = await openModelOf(values);
  const rows: ResumeRow[] = [];
  let storedShare = Number.NaN;
  try {
    for (const count of contexts) {
      if (context.signal.aborted) break;
      const measured = await measureContext(model, content, count, settings, context);
      rows.push(...measured.rows);
      storedShare = measured.storedShare;
    }
    const device = model.device.report.description;
    const link = `${rtt} ms and ${mbps} megabytes a second to the store`;
    context.print(`${values.model ?? values.shape}, ${device}, ${selection.policy} ${selection.budgetTokens}, ${link}`);
    context.print(content.description);
    for (const line of resumeTable(rows)) context.print(line);
    return { rows, storedShare, device };
  } finally {
    await model.close();
  }
}

/** Lines of the table of some rows. */
export function resumeTable(rows: readonly ResumeRow[]): string[] {
  return renderTable(columns, rows);
}

/** Lines of the table of bars. */
export function barTable(rows: readonly BarRow[]): string[] {
  return renderTable(barColumns, rows);
}

async function measureContext(
  model: BenchModel,
  content: Content,
  contextTokens: number,
  settings: Settings,
  { progress, signal }: Pick<BenchContext, "progress" | "signal">,
): Promise<Measured> {
  const { selection, prompt, tokens: replyTokens, rtt, mbps } = settings;
  progress(`storing a session of ${contextTokens} tokens`);
  await fillContext(model, content, contextTokens, selection);
  const store = new MemoryStore();
  const resumer = new Resumer(model, store, { rttMs: rtt, mbps });
  const name = { namespace: "00000000000be4c4", sessionId: `resumed-${contextTokens}` };
  const start = { ...name, tokens: content.context(contextTokens) };
  const spans = [{ end: contextTokens, how: "dense" }];
  await storeFilledSession({ model, store, ...start });
  const of = (mode: BenchMode, session: ResumeCase["session"], index: number): ResumeCase => ({
    ...{ mode, session, selection, replyTokens },
    prompt: content.prompt(contextTokens, index, prompt),
  });
  const session = await resumer.goOn(of("resident", { ...start, spans }, 0));
  const bytesSession = await sessionBytes(store);
  const reference = await resumer.run(of("resident", session, 1));
  const rows: ResumeRow[] = [];
  for (const mode of settings.modes) {
    if (signal.aborted) break;
    const what = { ...of(mode, session, 1), context: contextTokens };
    const turn = mode === "resident" ? reference : await resumer.run(what);
    const ids = mode === "lazy" || mode === "full" ? reference.ids : undefined;
    rows.push(resumeRow(what, turn, { bytesSession, ids }));
    progress(resumeTable(rows.slice(-1))[1] as string);
  }
  const { layerCount, kvHeadCount, headDim } = model.config;
  const f16Bytes = session.tokens.length * 2 * 2 * layerCount * kvHeadCount * headDim;
  return { rows, storedShare: bytesSession / f16Bytes };
}

/** What is measured of an engine beside resuming. */
async function measureEngine(
  values: ModelValues,
  stallMs: number,
  { progress }: Pick<BenchContext, "progress">,
): Promise<EngineFigures> {
  const model = await openModelOf(values);
  try {
    progress("decoding with and without a store to write to, then over one that answers nothing");
    const tokens = 4 * values.settings.tokens;
    const { persisting, stalled } = await measureWriting(model, { seed: values.seed, tokens, stallMs });
    progress("starting an engine's process, twice");
    const readyMs = await engineReadyMs(HOUSE.folder);
    return { readyMs, persistingShare: persisting, stalledShare: stalled };
  } finally {
    await model.close();
  }
}
