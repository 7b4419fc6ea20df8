/** Where a bare Linux machine has its Vulkan: what Dawn needs to be told to find loader and driver. */
import { basename, dirname, join } from "node:path";

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
/** Where no loader looks for libraries by itself. */
const CONTAINER_FOLDER = "/usr/local/nvidia/";
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

/** Loaders and drivers that there are, what is likeliest to work first; at least one. What the environment says already stays. */
export function findVulkan(search: VulkanSearch): VulkanPlace[] {
  const loader = findLoader(search);
  return findDrivers(search).map(({ note, folder, env }) => {
    const folders = [loader.folder, folder, search.env.LD_LIBRARY_PATH].filter(
      (part) => part !== undefined && part !== "",
    );
    const isFound = loader.folder === undefined && folder === undefined;
    return { env: { ...(isFound ? {} : { LD_LIBRARY_PATH: folders.join(":") }), ...env }, notes: [loader.note, note] };
  });
}

/** What a loader or a driver needs. */
interface Found {
  note: string;
  /** To be searched for libraries, where it is not anyway. */
  folder?: string;
  env?: Record<string, string>;
}

function findLoader({ env, exists, ownLoader }: VulkanSearch): Found {
  const paths = [...(env.LD_LIBRARY_PATH ?? "").split(":").filter((folder) => folder !== ""), ...LIBRARY_FOLDERS];
  const found = paths.find((folder) => exists(join(folder, "libvulkan.so.1")));
  if (found !== undefined) return { note: `Vulkan loader in ${found}` };
  const folder = ownLoader();
  if (folder === undefined) return { note: "no Vulkan loader (libvulkan.so.1)" };
  return { folder, note: "no Vulkan loader on this machine: that of the package @sparticuz/chromium" };
}

function findDrivers({ env, exists, list, write }: VulkanSearch): Found[] {
  const given = env.VK_DRIVER_FILES ?? env.VK_ICD_FILENAMES;
  if (given !== undefined) return [{ note: `Vulkan driver as given: ${given}` }];
  const manifests = (folders: readonly string[]): string[] =>
    folders.flatMap((folder) =>
      list(folder)
        .filter((name) => name.endsWith(".json"))
        .map((name) => join(folder, name)),
    );
  const library = (name: string): string | undefined =>
    LIBRARY_FOLDERS.map((folder) => join(folder, name)).find((path) => exists(path));
  const besides = (path: string | undefined): { folder?: string } =>
    path?.startsWith(CONTAINER_FOLDER) ? { folder: dirname(path) } : {};
  const [egl, glx] = [library("libEGL_nvidia.so.0"), library("libGLX_nvidia.so.0")];
  const usual = manifests(DRIVER_FOLDERS);
  const found: Found[] = [];
  if (usual.some((path) => /nvidia/i.test(path))) found.push({ note: `Vulkan drivers: ${usual.join(", ")}` });
  for (const path of manifests(NVIDIA_FOLDERS)) {
    found.push({ note: `Vulkan driver: ${path}`, env: { VK_DRIVER_FILES: path }, ...besides(glx ?? egl) });
  }
  // A container may be given the driver's libraries and not the file that names them. Without X11 it is the EGL library that loads.
  const libraries = library("libX11.so.6") === undefined ? [egl, glx] : [glx, egl];
  for (const path of libraries) {
    if (path === undefined) continue;
    const manifest = { file_format_version: "1.0.0", ICD: { library_path: path, api_version: "1.3.0" } };
    const written = write(`${basename(path).split(".")[0]}_icd.json`, JSON.stringify(manifest));
    const note = `Vulkan driver ${path}, with a manifest of ours`;
    found.push({ note, env: { VK_DRIVER_FILES: written }, ...besides(path) });
  }
  if (found.length > 0) return found;
  return [{ note: usual.length > 0 ? `Vulkan drivers: ${usual.join(", ")}` : "no Vulkan driver" }];
}
