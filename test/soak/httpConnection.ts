/** A client's connection for HTTP/1.1 that can tell an answer that was cut off from one that never began. */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { isPatternAt } from './pattern.ts';

export type Target = { host: string; port: number; tls: boolean };

export type Outcome =
  | {
      kind: 'answered';
      status: number;
      /** As the server calls itself; '' for an answer of the proxy's own. */
      server: string;
      length: number;
      /** The body is the range of the pattern that was asked for. */
      intact: boolean;
      /** The begin of the body. */
      text: string;
    }
  | { kind: 'cutOff'; server: string; status: number }
  | { kind: 'unanswered'; why: string };

export type RequestSpec = {
  method: string;
  path: string;
  /** Of the body; null without one. */
  body?: { pieces: Iterable<Buffer>; length: number; chunked: boolean } | null;
  /** Where the pattern of the answer begins. */
  at?: number;
  /** Between two reads. */
  readPauseMs?: number;
  /** Told of the body of the answer as it comes. */
  onPayload?: (bytes: Buffer) => void;
  timeoutMs: number;
};

const MAX_TEXT_BYTES = 128;

type Reading = {
  spec: RequestSpec;
  done: (outcome: Outcome) => void;
  head: Buffer;
  status: number;
  server: string;
  /** Bytes to come of the body or the chunk; -1 until a chunk's size is known. */
  left: number;
  chunked: boolean;
  line: string;
  isLast: boolean;
  closes: boolean;
  length: number;
  intact: boolean;
  text: string;
  timer: NodeJS.Timeout;
};

export class HttpConnection {
  readonly socket: Socket;
  isUsable = true;
  #reading: Reading | null = null;
  #error = 'closed';

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (bytes: Buffer) => this.#take(bytes));
    socket.on('error', (error: NodeJS.ErrnoException) => (this.#error = error.code ?? error.message));
    socket.on('end', () => this.#lost('ended'));
    socket.on('close', () => this.#lost(this.#error));
  }

  /** @throws an error of the system when it can't be made. */
  static open({ host, port, tls }: Target): Promise<HttpConnection> {
    return new Promise((done, refuse) => {
      const socket = tls
        ? connectTls({ host, port, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
        : connect({ host, port });
      socket.once('error', refuse);
      socket.once(tls ? 'secureConnect' : 'connect', () => {
        socket.off('error', refuse);
        done(new HttpConnection(socket));
      });
    });
  }

  request(spec: RequestSpec): Promise<Outcome> {
    return new Promise((done) => {
      if (!this.isUsable) {
        done({ kind: 'unanswered', why: `before it was asked: ${this.#error}` });
        return;
      }
      this.#reading = {
        spec,
        done,
        head: Buffer.alloc(0),
        status: 0,
        server: '',
        left: 0,
        chunked: false,
        line: '',
        isLast: false,
        closes: false,
        length: 0,
        intact: true,
        text: '',
        timer: setTimeout(() => {
          this.#error = 'timeout';
          this.socket.destroy();
        }, spec.timeoutMs),
      };
      void this.#send(spec);
    });
  }

  close(): void {
    this.isUsable = false;
    this.socket.destroy();
  }

  async #send({ method, path, body }: RequestSpec): Promise<void> {
    const framing = !body ? '' : body.chunked ? 'Transfer-Encoding: chunked\r\n' : `Content-Length: ${body.length}\r\n`;
    this.socket.write(`${method} ${path} HTTP/1.1\r\nHost: soak.test\r\n${framing}\r\n`);
    if (!body) return;
    for (const piece of body.pieces) {
      if (body.chunked) this.socket.write(`${piece.length.toString(16)}\r\n`);
      const isTaken = this.socket.write(piece);
      if (body.chunked) this.socket.write('\r\n');
      if (!isTaken) await this.#drained();
      // An answer that came before the body's end closes the connection.
      if (!this.isUsable || !this.#reading) return;
    }
    if (body.chunked) this.socket.write('0\r\n\r\n');
  }

  #drained(): Promise<void> {
    return new Promise((done) => {
      const over = () => {
        this.socket.off('drain', over);
        this.socket.off('close', over);
        done();
      };
      this.socket.on('drain', over);
      this.socket.on('close', over);
      if (this.socket.destroyed) over();
    });
  }

  #take(bytes: Buffer): void {
    const reading = this.#reading;
    if (!reading) {
      this.#error = 'unasked bytes';
      this.close();
      return;
    }
    if (reading.spec.readPauseMs) {
      this.socket.pause();
      setTimeout(() => this.socket.resume(), reading.spec.readPauseMs);
    }
    let rest = bytes;
    if (reading.status === 0) {
      reading.head = Buffer.concat([reading.head, bytes]);
      const end = reading.head.indexOf('\r\n\r\n');
      if (end === -1) return;
      rest = reading.head.subarray(end + 4);
      this.#readHead(reading, reading.head.toString('latin1', 0, end + 2));
      if (this.#reading !== reading) return;
    }
    if (reading.chunked) this.#takeChunks(reading, rest);
    else this.#takeLength(reading, rest);
  }

  #readHead(reading: Reading, head: string): void {
    reading.status = Number(head.slice(9, 12));
    reading.server = /^x-server: (.*)\r$/im.exec(head)?.[1] ?? '';
    reading.closes = /^connection: close\r$/im.test(head);
    reading.chunked = /^transfer-encoding: chunked\r$/im.test(head);
    reading.left = reading.chunked ? -1 : Number(/^content-length: (\d+)\r$/im.exec(head)?.[1] ?? 0);
    const isBare = reading.spec.method === 'HEAD' || reading.status === 204 || reading.status === 304;
    if (isBare || (!reading.chunked && reading.left === 0)) this.#answered(reading);
  }

  #payload(reading: Reading, bytes: Buffer): void {
    if (reading.spec.at !== undefined && !isPatternAt(bytes, reading.spec.at + reading.length)) reading.intact = false;
    if (reading.length < MAX_TEXT_BYTES) reading.text += bytes.toString('latin1', 0, MAX_TEXT_BYTES);
    reading.length += bytes.length;
    reading.spec.onPayload?.(bytes);
  }

  #takeLength(reading: Reading, bytes: Buffer): void {
    if (bytes.length === 0) return;
    const part = bytes.subarray(0, reading.left);
    this.#payload(reading, part);
    reading.left -= part.length;
    if (bytes.length > part.length) reading.intact = false;
    if (reading.left === 0) this.#answered(reading);
  }

  #takeChunks(reading: Reading, bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length && this.#reading === reading) {
      if (reading.left > 0) {
        const part = bytes.subarray(at, at + reading.left);
        this.#payload(reading, part);
        reading.left -= part.length;
        at += part.length;
        continue;
      }
      const end = bytes.indexOf('\n', at);
      reading.line += bytes.toString('latin1', at, end === -1 ? bytes.length : end + 1);
      at = end === -1 ? bytes.length : end + 1;
      if (end === -1) return;
      const { line } = reading;
      reading.line = '';
      if (reading.isLast) {
        if (line === '\r\n') this.#answered(reading);
      } else if (reading.left === 0) {
        // The end of a chunk's data.
        if (line !== '\r\n') reading.intact = false;
        reading.left = -1;
      } else {
        reading.left = Number.parseInt(line, 16);
        if (reading.left === 0) reading.isLast = true;
        else if (!(reading.left > 0 && reading.left < 2 ** 40)) {
          reading.intact = false;
          this.#answered(reading);
        }
      }
    }
  }

  #answered(reading: Reading): void {
    const { status, server, length, intact, text } = reading;
    if (reading.closes) this.close();
    this.#finish({ kind: 'answered', status, server, length, intact, text });
  }

  #lost(why: string): void {
    this.isUsable = false;
    this.socket.destroy();
    const reading = this.#reading;
    if (!reading) return;
    if (reading.status === 0) this.#finish({ kind: 'unanswered', why });
    else this.#finish({ kind: 'cutOff', server: reading.server, status: reading.status });
  }

  #finish(outcome: Outcome): void {
    const reading = this.#reading!;
    this.#reading = null;
    clearTimeout(reading.timer);
    reading.done(outcome);
  }
}
