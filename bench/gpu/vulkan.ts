/** Where a bare Linux machine has its Vulkan: what Dawn needs to be told to find loader and driver. */
import { dirname, join } from "node:path";

/** What the search needs of the machine. */
export interface VulkanSearch {
  env: Readonly<Record<string, string | undefined>>;
  exists(path: string): boolean;
  /** Names in a folder; none where there is no such folder. */
  list(folder: string): readonly string[];
  /** Folder of a loader of one's own, libvulkan.so.1, for machines without; undefined: there is none. */
  ownLoader(): string | undefined;
  /** Writes a small file into a temporary folder and gives its path. */
  write(name: string, text: string): string;
}

/** What to set for processes that use the GPU, and what was found, in words. */
export interface VulkanPlace {
  env: Record<string, string>;
  notes: string[];
}

const LIBRARY_FOLDERS = [
  ...["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"],
  ...["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"],
];
/** Where a loader looks by itself. */
const DRIVER_FOLDERS = ["/usr/share", "/etc", "/usr/local/share", "/usr/local/etc"].map(
  (base) => `${base}/vulkan/icd.d`,
);
/** Where containers are given NVIDIA's driver. */
const NVIDIA_FOLDERS = [
  "/usr/local/nvidia/share/vulkan/icd.d",
  "/usr/local/nvidia/vulkan/icd.d",
  "/opt/nvidia/vulkan/icd.d",
];

/** Finds loader and driver; what the environment says already stays. */
export function findVulkan(search: VulkanSearch): VulkanPlace {
  const place: VulkanPlace = { env: {}, notes: [] };
  findLoader(search, place);
  findDriver(search, place);
  return place;
}

function findLoader({ env, exists, ownLoader }: VulkanSearch, { env: set, notes }: VulkanPlace): void {
  const paths = [...(env.LD_LIBRARY_PATH ?? "").split(":").filter((folder) => folder !== ""), ...LIBRARY_FOLDERS];
  const found = paths.find((folder) => exists(join(folder, "libvulkan.so.1")));
  if (found !== undefined) return void notes.push(`Vulkan loader in ${found}`);
  const own = ownLoader();
  if (own === undefined) return void notes.push("no Vulkan loader (libvulkan.so.1)");
  set.LD_LIBRARY_PATH = [own, env.LD_LIBRARY_PATH].filter((part) => part).join(":");
  notes.push("no Vulkan loader on this machine: that of the package @sparticuz/chromium");
}

function findDriver({ env, exists, list, write }: VulkanSearch, { env: set, notes }: VulkanPlace): void {
  const given = env.VK_DRIVER_FILES ?? env.VK_ICD_FILENAMES;
  if (given !== undefined) return void notes.push(`Vulkan driver as given: ${given}`);
  const manifests = (folders: readonly string[]): string[] =>
    folders.flatMap((folder) =>
      list(folder)
        .filter((name) => name.endsWith(".json"))
        .map((name) => join(folder, name)),
    );
  const usual = manifests(DRIVER_FOLDERS);
  if (usual.some((path) => /nvidia/i.test(path))) return void notes.push(`Vulkan drivers: ${usual.join(", ")}`);
  const library = (name: string): string | undefined =>
    LIBRARY_FOLDERS.map((folder) => join(folder, name)).find((path) => exists(path));
  const [nvidia] = manifests(NVIDIA_FOLDERS);
  if (nvidia !== undefined) {
    set.VK_DRIVER_FILES = nvidia;
    return void notes.push(`Vulkan driver: ${nvidia}`);
  }
  // A container may be given the driver's libraries and not the file that names them. Without X11 it is the EGL library that loads.
  const path = library("libX11.so.6") === undefined ? library("libEGL_nvidia.so.0") : library("libGLX_nvidia.so.0");
  if (path === undefined)
    return void notes.push(usual.length > 0 ? `Vulkan drivers: ${usual.join(", ")}` : "no Vulkan driver");
  const manifest = { file_format_version: "1.0.0", ICD: { library_path: path, api_version: "1.3.0" } };
  set.VK_DRIVER_FILES = write("nvidia_icd.json", JSON.stringify(manifest));
  notes.push(`Vulkan driver ${path} (in ${dirname(path)}, with a manifest of ours)`);
}
