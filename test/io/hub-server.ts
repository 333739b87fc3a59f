import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const ID = 'owner/tiny';

export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

/** What happens to a body: `cut` breaks the connection after so many bytes, `status` answers an error. */
type Mishap = { readonly cut: number } | { readonly status: number } | { readonly corrupt: true };

/**
 * Imitates what resolveModel uses of the Hugging Face hub, on 127.0.0.1: the commit of a revision, paths-info,
 * and resolve, which redirects weights to a second server, as the hub does to its CDN.
 */
export class HubServer {
  readonly files = new Map<string, Buffer>();
  readonly seen: Seen[] = [];
  readonly cdnSeen: Seen[] = [];
  readonly #mishaps = new Map<string, Mishap[]>();
  endpoint = '';
  commit = COMMIT;
  token: string | undefined; // asked for where it is set
  status = 200; // of every answer of the API
  ignoreRange = false;
  onBody: () => void = () => {}; // runs when half of a body is sent; the rest waits for a while
  pause = 0;
  readonly #hub = createServer((request, response) => void this.#answer(request, response));
  readonly #cdn = createServer((request, response) => {
    this.cdnSeen.push(note(request));
    this.#sendBody(
      request,
      response,
      decodeURIComponent(new URL(request.url!, 'http://x').pathname.slice(1)),
    );
  });

  async start(): Promise<void> {
    for (const server of [this.#hub, this.#cdn])
      await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    this.endpoint = addressOf(this.#hub);
  }

  async stop(): Promise<void> {
    for (const server of [this.#hub, this.#cdn]) {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    }
  }

  /** What the next bodies of a file meet with, one after the other; none for a body after the last. */
  disturb(name: string, ...mishaps: Mishap[]): void {
    this.#mishaps.set(name, mishaps);
  }

  /** The requests for file contents since the last call of `forget`. */
  get bodies(): string[] {
    return [
      ...this.seen
        .filter(({ path }) => path.includes('/resolve/'))
        .map(({ path }) => path.split('/').at(-1)!),
    ];
  }

  forget(): void {
    this.seen.length = 0;
    this.cdnSeen.length = 0;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const seen = note(request);
    this.seen.push(seen);
    if (this.status !== 200) return this.#fail(response, this.status);
    if (this.token !== undefined && seen.authorization !== `Bearer ${this.token}`)
      return this.#fail(response, 401);
    const path = decodeURIComponent(seen.path);
    if (!path.includes(ID)) return this.#fail(response, 404);
    if (path.startsWith(`/api/models/${ID}/revision/`)) {
      if (path.endsWith('/nowhere')) return this.#fail(response, 404);
      return sendJson(response, { id: ID, sha: this.commit });
    }
    if (path === `/api/models/${ID}/paths-info/${this.commit}`) {
      const { paths } = JSON.parse(await readAll(request)) as { paths: string[] };
      return sendJson(
        response,
        paths.filter((name) => this.files.has(name)).map((name) => this.#info(name)),
      );
    }
    const prefix = `/${ID}/resolve/${this.commit}/`;
    const name = path.slice(prefix.length);
    if (!path.startsWith(prefix) || !this.files.has(name)) return this.#fail(response, 404);
    if (!name.endsWith('.safetensors')) return this.#sendBody(request, response, name);
    const location = `${addressOf(this.#cdn)}/${encodeURIComponent(name)}?signature=secret`;
    response
      .writeHead(302, {
        location,
        'x-repo-commit': this.commit,
        'x-linked-etag': `"${this.#info(name).lfs!.oid}"`,
      })
      .end();
  }

  #info(path: string) {
    const content = this.files.get(path)!;
    const git = createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
    const sha256 = createHash('sha256').update(content).digest('hex');
    const lfs = path.endsWith('.safetensors')
      ? { oid: sha256, size: content.length, pointerSize: 130 }
      : undefined;
    return { type: 'file', path, size: content.length, oid: git, lfs };
  }

  #sendBody(request: IncomingMessage, response: ServerResponse, name: string): void {
    const mishap = this.#mishaps.get(name)?.shift();
    if (mishap && 'status' in mishap) return this.#fail(response, mishap.status);
    const content = Buffer.from(this.files.get(name)!);
    if (mishap && 'corrupt' in mishap) content[content.length >> 1]! ^= 1;
    const from = this.ignoreRange ? 0 : Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
    const range =
      from > 0 ? { 'content-range': `bytes ${from}-${content.length - 1}/${content.length}` } : {};
    const body = content.subarray(from);
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': body.length, ...range });
    if (mishap && 'cut' in mishap) {
      response.write(body.subarray(0, mishap.cut), () => setTimeout(() => response.destroy(), 50));
      return;
    }
    response.write(body.subarray(0, body.length >> 1), () => this.onBody());
    setTimeout(() => response.end(body.subarray(body.length >> 1)), this.pause).unref();
  }

  #fail(response: ServerResponse, status: number): void {
    response
      .writeHead(status, { 'content-type': 'application/json' })
      .end('{"error":"reason of the server"}');
  }
}

function note({ method, url, headers }: IncomingMessage): Seen {
  return {
    method: method!,
    path: url!.split('?')[0]!,
    range: headers.range,
    authorization: headers.authorization,
  };
}

function addressOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function sendJson(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value));
}

async function readAll(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text;
}
