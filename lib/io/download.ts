import { createHash } from 'node:crypto';
import { constants, open, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { FormatError } from '../errors';

/** The connection failed or broke: worth another try. */
export class NetworkError extends Error {
  override readonly name = 'NetworkError';
}

/** The server answered, with an error. */
export class HttpError extends Error {
  override readonly name = 'HttpError';
  constructor(
    /** Called as in the errors of @huggingface/hub. */
    readonly statusCode: number,
    message: string,
  ) {
    super(message);
  }
}

export interface RemoteFile {
  /** For messages and progress. */
  readonly name: string;
  readonly url: string;
  readonly size: number;
  readonly digest: Digest;
}

/** SHA-256 of the bytes, or the id that git gives them (SHA-1 over a small header and the bytes). */
export interface Digest {
  readonly kind: 'sha256' | 'git';
  readonly hex: string;
}

export interface Progress {
  readonly file: string;
  /** Bytes on disk by now, those of an earlier, interrupted download included. */
  readonly received: number;
  readonly total: number;
}

export interface Transfer {
  readonly fetch: typeof fetch;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

const MAX_REDIRECTS = 5;
const RETRIES = 4; // without progress between them
const FIRST_DELAY_MS = 250; // doubles with every retry

/**
 * A `fetch` that sends the token to the host of `endpoint` and, through whatever redirects, to no other. It
 * follows them by hand for that reason, and turns failures of the connection into NetworkError.
 */
export function authorizedFetch(
  endpoint: string,
  token: string | undefined,
  signal?: AbortSignal,
): typeof fetch {
  const { origin } = new URL(endpoint);
  return async (input, init) => {
    let url = new URL(typeof input === 'object' && 'url' in input ? input.url : input);
    for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
      const headers = new Headers(init?.headers);
      if (token !== undefined && url.origin === origin) headers.set('authorization', `Bearer ${token}`);
      const request = fetch(url, { ...init, headers, signal, redirect: 'manual' });
      const response = await request.catch((error: Error) => {
        signal?.throwIfAborted();
        throw new NetworkError(`${url.origin} cannot be reached: ${causeOf(error)}`, { cause: error });
      });
      const location = response.headers.get('location');
      if (response.status < 300 || response.status >= 400 || location === null) return response;
      await response.body?.cancel();
      url = new URL(location, url);
    }
    throw new NetworkError(`${url.origin} redirects more than ${MAX_REDIRECTS} times`);
  };
}

/**
 * Downloads to `target`, which appears only when it is complete and its digest is right. What has arrived so far
 * is kept in `<target>.incomplete` and continued by the next call. Every byte is written at its own place, so that
 * two processes that download the same file do each other no harm.
 */
export async function downloadFile(file: RemoteFile, target: string, transfer: Transfer): Promise<void> {
  const partial = `${target}.incomplete`;
  const handle = await open(partial, constants.O_RDWR | constants.O_CREAT, 0o666);
  try {
    await fill(handle, file, transfer);
    await verify(handle, file, transfer.signal);
    await handle.sync();
  } catch (error) {
    if (error instanceof FormatError) await rm(partial, { force: true });
    throw error;
  } finally {
    await handle.close();
  }
  await rename(partial, target).catch(async (error: unknown) => {
    const other = await stat(target).catch(() => undefined); // another process may have been first
    if (other?.size !== file.size) throw error;
  });
}

/** Receives until the file has its size, trying again where a connection breaks. */
async function fill(handle: FileHandle, file: RemoteFile, transfer: Transfer): Promise<void> {
  let { size: received } = await handle.stat();
  if (received > file.size) {
    await handle.truncate(0);
    received = 0;
  }
  for (let failures = 0; received < file.size;) {
    const before = received;
    try {
      received = await receive(handle, file, received, transfer);
    } catch (error) {
      transfer.signal?.throwIfAborted();
      ({ size: received } = await handle.stat());
      failures = received > before ? 1 : failures + 1;
      if (!isTemporary(error) || failures > RETRIES) throw error;
      await delay(FIRST_DELAY_MS * 2 ** (failures - 1), undefined, { signal: transfer.signal });
    }
  }
}

/** One request for the bytes from `from` on; returns where the file ends now. */
async function receive(
  handle: FileHandle,
  file: RemoteFile,
  from: number,
  transfer: Transfer,
): Promise<number> {
  const range: Record<string, string> = from > 0 ? { range: `bytes=${from}-` } : {};
  const response = await transfer.fetch(file.url, { headers: { 'accept-encoding': 'identity', ...range } });
  if (!response.ok || !response.body) {
    await response.body?.cancel();
    throw new HttpError(
      response.status,
      `${file.name}: server answered ${response.status} ${response.statusText}`,
    );
  }
  // A server that ignores the range answers 200 and sends the file from its start.
  let position = response.status === 206 ? from : 0;
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  try {
    for (;;) {
      const { value: chunk, done } = await reader.read().catch((error: Error) => {
        throw new NetworkError(`${file.name}: connection broke at byte ${position}: ${causeOf(error)}`, {
          cause: error,
        });
      });
      if (done) break;
      if (position + chunk.length > file.size) {
        throw new FormatError(`${file.name}: server sent more than the ${file.size} bytes it announced`);
      }
      await writeAt(handle, chunk, position);
      position += chunk.length;
      transfer.onProgress?.({ file: file.name, received: position, total: file.size });
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
  if (position < file.size)
    throw new NetworkError(`${file.name}: connection ended at byte ${position} of ${file.size}`);
  return position;
}

async function writeAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

/** Reads the file back from disk: what is checked is what will be used. */
async function verify(
  handle: FileHandle,
  { name, size, digest }: RemoteFile,
  signal?: AbortSignal,
): Promise<void> {
  const hash = createHash(digest.kind === 'git' ? 'sha1' : 'sha256');
  if (digest.kind === 'git') hash.update(`blob ${size}\0`);
  const buffer = Buffer.alloc(1 << 20);
  for (let position = 0; position < size;) {
    signal?.throwIfAborted();
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
    if (bytesRead === 0) break;
    hash.update(buffer.subarray(0, bytesRead));
    position += bytesRead;
  }
  const hex = hash.digest('hex');
  if (hex !== digest.hex) {
    throw new FormatError(
      `${name}: checksum is ${hex}, expected ${digest.hex}; the damaged download was deleted`,
    );
  }
}

function isTemporary(error: unknown): boolean {
  if (error instanceof HttpError)
    return error.statusCode >= 500 || error.statusCode === 408 || error.statusCode === 429;
  return error instanceof NetworkError;
}

/** `fetch` hides the reason ("connect ECONNREFUSED ...") in the cause of "fetch failed". */
function causeOf(error: Error): string {
  const cause = error.cause as { readonly message?: string } | undefined;
  return cause?.message || error.message;
}
