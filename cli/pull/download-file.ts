/** One file from the hub into the staging folder: resumed, retried, checked. */
import { stat } from "node:fs/promises";
import type { HubClient, HubResponse } from "./hub-client.ts";
import type { HubFile } from "./hub-files.ts";
import { PartFile, stagedPath } from "./part-file.ts";
import { PullError, TransientError } from "./pull-error.ts";
import { type Patience, withRetries } from "./retry.ts";

/** What a download works with. */
export interface DownloadContext {
  hub: HubClient;
  repo: string;
  commit: string;
  /** Folder of parts and of files that are checked but not yet in place. */
  stage: string;
  patience: Patience;
  /** Aborted: ends with its reason; the part stays. */
  signal: AbortSignal;
  random(): number;
  observer: {
    /** `thereBytes` of the file are on the disk; falls when a download starts over. */
    onProgress(file: HubFile, thereBytes: number): void;
    onRetry(message: string, delayMs: number): void;
  };
}

/** A download that crept on by less than this between two cuts made no progress. */
const progressBytesMin = 1 << 20;

/**
 * Resolves once the file lies at its {@link stagedPath}, its hash checked, on the disk.
 * @throws {PullError} one line; the signal's reason once it is aborted. The part stays, unless its bytes were wrong.
 */
export async function downloadFile(file: HubFile, context: DownloadContext): Promise<void> {
  const done = await stat(stagedPath(context.stage, file)).catch(() => undefined);
  if (done?.size === file.sizeBytes) return context.observer.onProgress(file, file.sizeBytes);
  const part = await PartFile.open(context.stage, file, context);
  try {
    await new Download(file, part, context).run();
  } finally {
    await part.close();
  }
}

class Download {
  readonly #file: HubFile;
  readonly #part: PartFile;
  readonly #context: DownloadContext;
  /** The most bytes that were ever there: starting over is no progress. */
  #highestBytes: number;
  /** All bytes come from one response of this process. */
  #isInOnePiece = false;
  #hasStartedOver = false;

  constructor(file: HubFile, part: PartFile, context: DownloadContext) {
    this.#file = file;
    this.#part = part;
    this.#context = context;
    this.#highestBytes = part.offsetBytes;
  }

  async run(): Promise<void> {
    this.#context.observer.onProgress(this.#file, this.#part.offsetBytes);
    await withRetries(() => this.#attempt(), {
      ...this.#context,
      onRetry: (message, delayMs) => this.#context.observer.onRetry(message, delayMs),
      progress: () => Math.floor(this.#highestBytes / progressBytesMin),
    });
  }

  async #attempt(): Promise<void> {
    if (this.#part.offsetBytes < this.#file.sizeBytes || this.#file.sizeBytes === 0) await this.#transfer();
    if (await this.#part.finish()) return;
    const isFinal = this.#isInOnePiece || this.#hasStartedOver;
    await this.#startOver();
    this.#hasStartedOver = true;
    const { kind } = this.#file.hash;
    const message = `${this.#file.path}: its ${kind === "sha256" ? "SHA-256" : "git hash"} is not the one the hub announces`;
    throw isFinal ? new PullError(message) : new TransientError(message);
  }

  async #transfer(): Promise<void> {
    const { repo, commit, hub, signal } = this.#context;
    const part = this.#part;
    const offsetBytes = part.offsetBytes;
    const ranged = { range: `bytes=${offsetBytes}-`, ...(part.etag === undefined ? {} : { "if-range": part.etag }) };
    const path = this.#file.path.split("/").map(encodeURIComponent).join("/");
    const response = await hub.get(`/${repo}/resolve/${commit}/${path}`, {
      what: this.#file.path,
      headers: offsetBytes > 0 ? ranged : {},
      signal,
    });
    try {
      await this.#checkHead(response);
    } catch (error) {
      await response.discard();
      throw error;
    }
    if (part.offsetBytes === 0) {
      this.#isInOnePiece = true;
      await part.setEtag(response.headers.get("etag"));
    }
    await this.#take(response);
  }

  /** Leaves the part at the offset at which the body begins. */
  async #checkHead({ status, headers }: HubResponse): Promise<void> {
    const { path, sizeBytes } = this.#file;
    const offsetBytes = this.#part.offsetBytes;
    if (status === 200) {
      const isEncoded = (headers.get("content-encoding") ?? "identity") !== "identity";
      const length = headers.get("content-length");
      if (!isEncoded && length !== null && Number(length) !== sizeBytes) {
        throw new PullError(`${path}: the server sends ${length} bytes, the hub announces ${sizeBytes}`);
      }
      // The whole file again: the server knows no ranges, or has another one than we have a part of.
      if (offsetBytes > 0) await this.#startOver();
      return;
    }
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers.get("content-range") ?? "");
    const isAsked = status === 206 && offsetBytes > 0 && Number(range?.[1] ?? Number.NaN) === offsetBytes;
    if (isAsked && (range?.[2] === "*" || Number(range?.[2]) === sizeBytes)) {
      this.#isInOnePiece = false;
      return;
    }
    await this.#startOver();
    throw new TransientError(`${path}: the server sent another range than it was asked for`);
  }

  async #take(response: HubResponse): Promise<void> {
    const { path, sizeBytes } = this.#file;
    const part = this.#part;
    for await (const bytes of response.body()) {
      if (part.offsetBytes + bytes.length > sizeBytes) {
        await this.#startOver();
        throw new PullError(`${path}: the server sends more than the ${sizeBytes} bytes that the hub announces`);
      }
      await part.append(bytes);
      this.#highestBytes = Math.max(this.#highestBytes, part.offsetBytes);
      this.#context.observer.onProgress(this.#file, part.offsetBytes);
    }
    if (part.offsetBytes < sizeBytes) {
      throw new TransientError(`${path}: the server ended after ${part.offsetBytes} of ${sizeBytes} bytes`);
    }
  }

  async #startOver(): Promise<void> {
    await this.#part.restart();
    this.#isInOnePiece = false;
    this.#context.observer.onProgress(this.#file, 0);
  }
}
