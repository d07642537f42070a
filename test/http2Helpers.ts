/** An Http2Front on a port of its own, before an engine that does as it is told. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import koffi from 'koffi';
import { onTestFinished } from 'vitest';
import type { z } from 'zod';
import { http2Schema } from '../src/config/http2.ts';
import type { Http2Limits } from '../src/config/http2.ts';
import { Body } from '../src/proxy/framing.ts';
import { parseRequest } from '../src/proxy/head.ts';
import { Http2Front } from '../src/proxy/http2Front.ts';
import type { Http2FrontOptions } from '../src/proxy/http2Front.ts';
import type { Stream, StreamUser } from '../src/proxy/stream.ts';

/** What an engine hears of one request. Its input is parsed as HTTP/1.1 must be. */
export class Heard implements StreamUser {
  readonly stream: Stream;
  head = '';
  /** With its framing, as it came. */
  rawBody = '';
  body = '';
  isWhole = false;
  hasEnded = false;
  drains = 0;
  /** Undefined while it is open. */
  closed: string | null | undefined;
  /** As often as something was heard: each is called once. */
  readonly #onEvent: (heard: Heard) => void;
  #input = Buffer.alloc(0);
  #framing: Body | null = null;
  #isTunnel = false;

  constructor(stream: Stream, onEvent: (heard: Heard) => void) {
    this.stream = stream;
    this.#onEvent = onEvent;
  }

  onData(bytes: Buffer): void {
    if (this.hasEnded || this.closed !== undefined) throw new Error('told of data behind the end');
    if (!this.#framing) {
      this.#input = Buffer.concat([this.#input, bytes]);
      const head = parseRequest(this.#input);
      if (typeof head !== 'object') throw new Error(`${JSON.stringify(this.#input.toString('latin1'))} gives ${head}`);
      this.head = this.#input.toString('latin1', 0, head.length);
      this.#isTunnel = head.upgrade !== null;
      this.#framing = new Body(head.framing, head.contentLength);
      this.#takeBody(this.#input.subarray(head.length));
    } else this.#takeBody(bytes);
    this.#onEvent(this);
  }

  #takeBody(bytes: Buffer): void {
    this.rawBody += bytes.toString('latin1');
    if (this.#isTunnel) {
      this.body += bytes.toString('latin1');
      return;
    }
    const taken = this.#framing!.take(bytes, (start, end) => {
      this.body += bytes.toString('latin1', start, end);
    });
    if (this.#framing!.broken || taken !== bytes.length) throw new Error(`not a body: ${this.rawBody}`);
    this.isWhole = this.#framing!.done;
  }

  onDrain(): void {
    this.drains++;
    this.#onEvent(this);
  }

  onEnd(): void {
    if (this.hasEnded || this.closed !== undefined) throw new Error('told of the end twice');
    this.hasEnded = true;
    this.#onEvent(this);
  }

  onClosed(error: string | null): void {
    if (this.closed !== undefined) throw new Error('told of the close twice');
    this.closed = error;
    this.#onEvent(this);
  }

  say(text: string): boolean {
    return this.stream.write(Buffer.from(text, 'latin1'));
  }
}

export type Fake = {
  port: number;
  front: Http2Front;
  limits: Http2Limits;
  heard: Heard[];
  refused: string[];
  /** Node was asked for something this often. */
  wakes: number;
  /** Waits for what an event will bring. */
  until(check: () => boolean): Promise<void>;
};

/** `onServed` is called before an engine hears anything. */
export type FakeOptions = Partial<Omit<Http2FrontOptions, 'limits' | 'serve'>> & {
  limits?: z.input<typeof http2Schema>;
  onServed?: (stream: Stream) => void;
};

const dup = koffi.load(null).func('int dup(int)') as (fd: number) => number;

/** The descriptor of a socket that Node has accepted, as nobody's but the caller's. */
const takeDescriptor = (socket: Socket): number => {
  const fd = dup((socket as Socket & { _handle: { fd: number } })._handle.fd);
  socket.destroy();
  return fd;
};

/** `answer` is called as often as something was heard of a request. */
export const fakeFront = async (
  answer: (heard: Heard, stream: Stream) => void,
  { limits: changes = {}, onServed, ...options }: FakeOptions = {},
): Promise<Fake> => {
  const waiting: (() => void)[] = [];
  const wake = () => {
    for (const resolve of waiting.splice(0)) resolve();
  };
  const limits = http2Schema.parse(changes);
  const heard: Heard[] = [];
  const refused: string[] = [];
  const front = new Http2Front({
    tls: null,
    timeouts: () => ({ httpRequest: 10_000, keepAlive: 10_000 }),
    serve: (stream) => {
      const one = new Heard(stream, (self) => {
        answer(self, stream);
        wake();
      });
      heard.push(one);
      stream.user = one;
      onServed?.(stream);
      wake();
    },
    onRefused: (reason) => {
      refused.push(reason);
      wake();
    },
    onSecure: () => {},
    onHandshakeFailed: (code) => {
      refused.push(`TLS handshake: ${code}`);
      wake();
    },
    onConnectionClosed: wake,
    wakeNode: () => {
      fake.wakes++;
    },
    ...options,
    limits,
  });
  const server = createServer({ pauseOnConnect: true }, (socket) => front.accept(takeDescriptor(socket)));
  onTestFinished(() => {
    server.close();
    front.destroy();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const fake: Fake = {
    port,
    front,
    limits,
    heard,
    refused,
    wakes: 0,
    async until(check) {
      while (!check()) await new Promise<void>((resolve) => waiting.push(resolve));
    },
  };
  return fake;
};
