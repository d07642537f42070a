/** A client of HTTP/2 that says what it is told to, valid or not: frames by hand, fields as HPACK literals. */
import { once } from 'node:events';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { onTestFinished } from 'vitest';

export const DATA = 0;
export const HEADERS = 1;
export const RST_STREAM = 3;
export const SETTINGS = 4;
export const PING = 6;
export const GOAWAY = 7;
export const WINDOW_UPDATE = 8;
export const CONTINUATION = 9;

export const END_STREAM = 1;
export const ACK = 1;
export const END_HEADERS = 4;

export const SETTINGS_INITIAL_WINDOW_SIZE = 4;

export type Frame = { type: number; flags: number; stream: number; payload: Buffer };
export type FieldList = readonly (readonly [string, string])[];

export const frame = (type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};

/** RFC 7541 section 5.2, without Huffman. */
const string = (text: string): Buffer => {
  const bytes = Buffer.from(text, 'latin1');
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const length = [127];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest >>= 7) length.push((rest & 127) | 128);
  return Buffer.concat([Buffer.from([...length, rest]), bytes]);
};

/** RFC 7541 section 6.2.2: literals without indexing. */
export const block = (fields: FieldList): Buffer =>
  Buffer.concat(fields.flatMap(([name, value]) => [Buffer.from([0]), string(name), string(value)]));

export const headers = (stream: number, fields: FieldList, flags = END_HEADERS + END_STREAM): Buffer =>
  frame(HEADERS, flags, stream, block(fields));

export const data = (stream: number, text: string, flags = 0): Buffer => frame(DATA, flags, stream, Buffer.from(text));

export const reset = (stream: number, code: number): Buffer => frame(RST_STREAM, 0, stream, uint32(code));

export const uint32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** Pairs of identifier and value. */
export const settings = (...pairs: [number, number][]): Buffer => {
  const payload = Buffer.alloc(pairs.length * 6);
  for (const [index, [id, value]] of pairs.entries()) {
    payload.writeUInt16BE(id, index * 6);
    payload.writeUInt32BE(value, index * 6 + 2);
  }
  return frame(SETTINGS, 0, 0, payload);
};

export const GET: FieldList = [
  [':method', 'GET'],
  [':scheme', 'http'],
  [':authority', 'a.example'],
  [':path', '/'],
];

/** `GET` with other fields behind it, and its own changed or (null) taken out. */
export const get = (changes: Record<string, string | null>, ...more: [string, string][]): FieldList => [
  ...GET.flatMap(([name, value]): [string, string][] => {
    const change = changes[name];
    return change === null ? [] : [[name, change ?? value]];
  }),
  ...more,
];

export class RawClient {
  readonly socket: Socket;
  readonly frames: Frame[] = [];
  isClosed = false;
  #input = Buffer.alloc(0);
  #waiting: (() => void)[] = [];

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => {});
    socket.on('data', (bytes: Buffer) => this.#onData(bytes));
    socket.on('close', () => {
      this.isClosed = true;
      this.#wake();
    });
  }

  send(...parts: Buffer[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** The first frame that fits, also of those that came before. Fails when the connection closes without one. */
  async frame(type: number, stream: number, fits: (frame: Frame) => boolean = () => true): Promise<Frame> {
    for (;;) {
      const found = this.frames.find((one) => one.type === type && one.stream === stream && fits(one));
      if (found) return found;
      if (this.isClosed) throw new Error(`closed without frame ${type} of stream ${stream}`);
      await this.#change();
    }
  }

  /** The code of RST_STREAM. */
  async resetCode(stream: number): Promise<number> {
    return (await this.frame(RST_STREAM, stream)).payload.readUInt32BE(0);
  }

  async goAwayCode(): Promise<number> {
    return (await this.frame(GOAWAY, 0)).payload.readUInt32BE(4);
  }

  async closed(): Promise<void> {
    while (!this.isClosed) await this.#change();
  }

  /** All DATA of a stream so far. */
  body(stream: number): string {
    return Buffer.concat(
      this.frames.filter((one) => one.type === DATA && one.stream === stream).map((one) => one.payload),
    ).toString('latin1');
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #onData(bytes: Buffer): void {
    this.#input = Buffer.concat([this.#input, bytes]);
    while (this.#input.length >= 9) {
      const length = this.#input.readUIntBE(0, 3);
      if (this.#input.length < 9 + length) break;
      const one: Frame = {
        type: this.#input[3]!,
        flags: this.#input[4]!,
        stream: this.#input.readUInt32BE(5),
        payload: this.#input.subarray(9, 9 + length),
      };
      this.#input = this.#input.subarray(9 + length);
      if (one.type === SETTINGS && (one.flags & ACK) === 0) this.send(frame(SETTINGS, ACK, 0));
      this.frames.push(one);
    }
    this.#wake();
  }
}

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

/** Has said hello with these settings. Its end comes with the test's. */
export const rawClient = async (port: number, ...pairs: [number, number][]): Promise<RawClient> => {
  const socket = connect(port, '127.0.0.1');
  onTestFinished(() => {
    socket.destroy();
  });
  const client = new RawClient(socket);
  await once(socket, 'connect');
  client.send(PREFACE, settings(...pairs));
  return client;
};
