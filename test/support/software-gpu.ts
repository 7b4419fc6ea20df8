/**
 * A software GPU for tests: SwiftShader, as it comes with the npm package @sparticuz/chromium, with its own Vulkan loader. It is unpacked once
 * per machine; a machine that has a driver of its own (VK_ICD_FILENAMES or VK_DRIVER_FILES set) keeps that.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { constants, tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { NoAdapterError, requestAdapter } from "../../kernels/webgpu/adapter.ts";

/** Keeps a library loaded that is no addon: dlopen's RTLD_NODELETE. */
const NO_DELETE = 0x1000;
const TAR_BLOCK = 512;

/**
 * Makes SwiftShader this process's Vulkan driver, before the first adapter is asked for. Returns false where the package is not installed, or
 * not for this platform.
 */
export function useSoftwareGpu(): boolean {
  if (process.env.VK_ICD_FILENAMES !== undefined || process.env.VK_DRIVER_FILES !== undefined) return true;
  const folder = softwareGpuFolder();
  if (folder === undefined) return false;
  process.env.VK_ICD_FILENAMES = join(folder, "vk_swiftshader_icd.json");
  try {
    // Dawn opens "libvulkan.so.1" by name and finds the one that is loaded; Node rightly says that it is no addon.
    process.dlopen({ exports: {} }, join(folder, "libvulkan.so.1"), constants.dlopen.RTLD_NOW | NO_DELETE);
  } catch {}
  return true;
}

/** undefined where there is no adapter; in CI that is an error. */
export async function adapterForTests(): Promise<GPUAdapter | undefined> {
  useSoftwareGpu();
  try {
    return await requestAdapter();
  } catch (error) {
    if (!(error instanceof NoAdapterError) || process.env.CI !== undefined) throw error;
    return undefined;
  }
}

/** Folder with SwiftShader's files and a Vulkan loader, libvulkan.so.1; undefined where the package is not installed or not for this platform. */
export function softwareGpuFolder(): string | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  const archive = archivePath();
  if (archive === undefined) return undefined;
  const folder = join(tmpdir(), `quire-swiftshader-${process.getuid?.() ?? 0}-${versionOf(archive)}`);
  if (existsSync(folder)) return folder;
  const fresh = mkdtempSync(join(tmpdir(), "quire-swiftshader-"));
  for (const { name, data } of tarFiles(brotliDecompressSync(readFileSync(archive)))) {
    mkdirSync(dirname(join(fresh, name)), { recursive: true });
    writeFileSync(join(fresh, name), data);
  }
  try {
    renameSync(fresh, folder);
  } catch {
    rmSync(fresh, { recursive: true });
    if (!existsSync(folder)) return undefined;
  }
  return folder;
}

function archivePath(): string | undefined {
  try {
    const entry = createRequire(import.meta.url).resolve("@sparticuz/chromium");
    const path = join(dirname(entry), "../bin/swiftshader.tar.br");
    return existsSync(path) ? path : undefined;
  } catch {
    return undefined;
  }
}

function versionOf(archive: string): string {
  const { version } = JSON.parse(readFileSync(join(dirname(archive), "../package.json"), "utf8")) as {
    version: string;
  };
  return version;
}

/** The plain files of a tar archive, by base name. */
function tarFiles(tar: Uint8Array): { name: string; data: Uint8Array }[] {
  const text = (at: number, length: number): string =>
    Buffer.from(tar.subarray(at, at + length))
      .toString("latin1")
      .replace(/\0.*$/s, "");
  const files: { name: string; data: Uint8Array }[] = [];
  for (let at = 0; at + TAR_BLOCK <= tar.length && tar[at] !== 0; ) {
    const size = Number.parseInt(text(at + 124, 12), 8);
    const isFile = text(at + 156, 1) === "0" || text(at + 156, 1) === "";
    const start = at + TAR_BLOCK;
    if (isFile) files.push({ name: basename(text(at, 100)), data: tar.subarray(start, start + size) });
    at = start + Math.ceil(size / TAR_BLOCK) * TAR_BLOCK;
  }
  return files;
}
