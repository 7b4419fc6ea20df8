/** `npm run demo:failover`: kills engines while they speak and shows that the stream goes on. Exit code 0 only if it is the same text. */
import { styleText } from "node:util";
import { Stage } from "./demo-stage.ts";
import { type FailoverAudience, type Killed, playFailover } from "./failover-scenario.ts";
import { runDemo } from "./run-demo.ts";

const killCount = 3;

const write = (text: string): void => void process.stdout.write(text);
const line = (text = ""): void => write(`${text}\n`);
/** One event, one line of text: what a model says may have line ends of its own. */
const flat = (text: string): string => text.replaceAll(/\s+/g, " ");

const screen: FailoverAudience = {
  undisturbed(manner, { text }) {
    line();
    line(styleText(["bold", "cyan"], `${manner.name}, undisturbed`));
    line(`  ${styleText("dim", flat(text))}`);
    line(styleText(["bold", "cyan"], `${manner.name}, killed`));
    write("  ");
  },
  speaks: (text) => write(styleText("green", flat(text))),
  kills: ({ pid }) => write(styleText(["bold", "red"], ` [kill -9 ${pid}] `)),
  over({ engines, gapMsMax, identical }) {
    line();
    line(`  ${styleText("dim", `${engines.join(" went on as ")}; longest silence ${Math.round(gapMsMax)} ms`)}`);
    line(`  ${identical ? styleText("green", "the same text") : styleText(["bold", "red"], "ANOTHER TEXT")}`);
  },
  missed() {
    line();
    line(`  ${styleText("dim", "over before the kill; once more")}`);
    write("  ");
  },
};

async function play(signal: AbortSignal): Promise<number> {
  line();
  line(styleText("bold", "Quire: engines are killed while they speak, and the stream goes on"));
  line("house-0, int8 KV, three engines; each reply is cut at a random moment.");
  const stage = await Stage.open(signal);
  signal.addEventListener("abort", () => void stage.close());
  try {
    const killed = await playFailover({ stage, killCount, random: Math.random, audience: screen });
    const holds = killed.every(({ identical }) => identical);
    line();
    const verdict = holds ? "Every reply is the one that nobody disturbed." : "Something did not hold.";
    line(styleText(["bold", holds ? "green" : "red"], verdict));
    if (!holds) showWarnings(stage.warnings, killed);
    return holds ? 0 : 1;
  } finally {
    await stage.close();
  }
}

function showWarnings(warnings: readonly string[], killed: readonly Killed[]): void {
  for (const { manner, text, identical } of killed) if (!identical) line(`${manner.name}: ${flat(text)}`);
  for (const warning of warnings) line(styleText("dim", warning));
}

await runDemo("demo:failover", play);
