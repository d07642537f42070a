/** The inspector of another process: what lives in the heaps of its threads. */

type Message = {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
};

/** A thread that works for longer than this without a look at its messages is left out. */
const ANSWER_TIMEOUT_MS = 10_000;

/** Requests and answers of one thread. */
class Session {
  readonly #write: (text: string) => unknown;
  #lastId = 0;
  #waiting = new Map<number, PromiseWithResolvers<Record<string, unknown>>>();

  constructor(write: (text: string) => unknown) {
    this.#write = write;
  }

  /** Says it and looks for no answer. */
  say(method: string, params: Record<string, unknown>): number {
    const id = ++this.#lastId;
    this.#write(JSON.stringify({ id, method, params }));
    return id;
  }

  send(method: string, params: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const answer = Promise.withResolvers<Record<string, unknown>>();
    const id = this.say(method, params);
    this.#waiting.set(id, answer);
    const late = setTimeout(() => answer.reject(new Error(`${method}: no answer`)), ANSWER_TIMEOUT_MS);
    return answer.promise.finally(() => {
      clearTimeout(late);
      this.#waiting.delete(id);
    });
  }

  hear({ id, result, error }: Message): void {
    const answer = this.#waiting.get(id ?? -1);
    if (error) answer?.reject(new Error(error.message));
    else answer?.resolve(result ?? {});
  }
}

export class Inspector {
  readonly #socket: WebSocket;
  readonly #main: Session;
  readonly #workers = new Map<string, { title: string; session: Session }>();

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    this.#main = new Session((text) => socket.send(text));
    socket.addEventListener('message', ({ data }) => this.#hear(JSON.parse(data as string) as Message));
  }

  static async open(url: string): Promise<Inspector> {
    const socket = new WebSocket(url);
    await new Promise((done, refuse) => {
      socket.addEventListener('open', done, { once: true });
      socket.addEventListener('error', () => refuse(new Error(`no inspector at ${url}`)), { once: true });
    });
    const inspector = new Inspector(socket);
    await inspector.#main.send('NodeWorker.enable', { waitForDebuggerOnStart: false });
    return inspector;
  }

  async heaps(): Promise<Record<string, number>> {
    const threads: [string, Session][] = [['main', this.#main]];
    for (const { title, session } of this.#workers.values()) threads.push([title, session]);
    const heaps: Record<string, number> = {};
    await Promise.all(
      threads.map(async ([title, session]) => {
        await session.send('HeapProfiler.collectGarbage');
        const { usedSize } = await session.send('Runtime.getHeapUsage');
        heaps[title] = usedSize as number;
      }),
    );
    return heaps;
  }

  close(): void {
    this.#socket.close();
  }

  #hear(message: Message): void {
    const { method, params } = message;
    if (method === 'NodeWorker.attachedToWorker') this.#attached(params!);
    else if (method === 'NodeWorker.detachedFromWorker') this.#workers.delete(params!['sessionId'] as string);
    else if (method === 'NodeWorker.receivedMessageFromWorker') {
      const { sessionId, message: text } = params as { sessionId: string; message: string };
      this.#workers.get(sessionId)?.session.hear(JSON.parse(text) as Message);
    } else this.#main.hear(message);
  }

  #attached(params: Record<string, unknown>): void {
    const { sessionId, workerInfo } = params as { sessionId: string; workerInfo: { url: string; workerId: string } };
    const session = new Session((message) => this.#main.say('NodeWorker.sendMessageToWorker', { sessionId, message }));
    const file = workerInfo.url.slice(workerInfo.url.lastIndexOf('/') + 1);
    this.#workers.set(sessionId, { title: `${file} ${workerInfo.workerId}`, session });
  }
}
