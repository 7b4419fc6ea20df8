#!/usr/bin/env node
// Plain JavaScript for any Node since 20: finds a Node that runs TypeScript and hands over to cli/main.ts.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const nodeMajorMin = 24;
const require = createRequire(import.meta.url);

/** The Node that npm installed beside us, or undefined where the platform package is missing. */
function bundledNode() {
  const program = process.platform === "win32" ? "node.exe" : "node";
  const platform = process.platform === "win32" ? "win" : process.platform;
  for (const name of [`node-${platform}-${process.arch}`, `node-bin-${platform}-${process.arch}`]) {
    try {
      const path = join(dirname(require.resolve(`${name}/package.json`)), "bin", program);
      if (existsSync(path)) return path;
    } catch {
      // Not installed for this platform: try the next name.
    }
  }
  return undefined;
}

/** What Node is started with for this command: an engine has flags and variables of its own (cli/engine-start.ts says which and why). */
function startOf() {
  if (process.argv[2] !== "serve") return { nodeFlags: [], environment: {} };
  const { nodeFlags, environment } = JSON.parse(
    readFileSync(new URL("../cli/engine-start.json", import.meta.url), "utf8"),
  );
  return { nodeFlags, environment: process.platform === "linux" ? environment : {} };
}

/** Runs this file again on another Node; signals and the exit code pass through. */
function runOn(node) {
  // The IPC channel carries nothing: its end tells the child that this process is gone.
  const { nodeFlags, environment } = startOf();
  const child = spawn(node, [...nodeFlags, fileURLToPath(import.meta.url), ...process.argv.slice(2)], {
    stdio: ["inherit", "inherit", "inherit", "ipc"],
    env: { ...environment, ...process.env },
  });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`quire: cannot start ${node}: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => process.exit(code ?? 128 + (constants.signals[signal] ?? 0)));
}

/**
 * An engine that was started by hand, without its flags and variables: this process becomes one that has them. Not where a parent listens (it starts engines
 * with theirs, and a new program would not hear of its end), nor on Windows, which cannot: the defaults are as right, and take more memory.
 */
function startAnew({ nodeFlags, environment }) {
  const flags = nodeFlags.filter((flag) => !process.execArgv.includes(flag));
  const isWhole = flags.length === 0 && Object.keys(environment).every((name) => process.env[name] !== undefined);
  if (isWhole || process.connected) return;
  if (process.execve === undefined || process.platform === "win32") return;
  const args = [process.execPath, ...flags, ...process.execArgv, fileURLToPath(import.meta.url)];
  process.execve(process.execPath, [...args, ...process.argv.slice(2)], { ...environment, ...process.env });
}

if (Number(process.versions.node.split(".")[0]) >= nodeMajorMin) {
  // What serves goes on where its words can no longer be written (a log on a full disk).
  const serves = ["serve", "start"].includes(process.argv[2]);
  process.stderr.on("error", () => undefined);
  process.stdout.on("error", (error) => {
    // A reader that has seen enough (`| head`) is no failure of ours; 141 is how a shell says so.
    if (error.code === "EPIPE") process.exit(141);
    if (serves) return;
    process.stderr.write(`quire: standard output cannot be written (${error.code ?? error.message})\n`);
    process.exit(1);
  });
  startAnew(startOf());
  const { main } = await import("../cli/main.ts");
  const code = await main(process.argv.slice(2));
  // What went wrong with the last line is told a moment behind it.
  await new Promise((resolve) => process.stdout.write("", resolve));
  process.exit(code);
} else {
  const node = bundledNode();
  if (node === undefined) {
    console.error(
      `quire: needs Node ${nodeMajorMin} or later (this is ${process.version}), and npm installed none here`,
    );
    process.exit(1);
  }
  runOn(node);
}
