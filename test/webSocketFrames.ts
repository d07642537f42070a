/** Frames of RFC 6455 by hand, so that tests can send and see each of them: a codec, an echoing server, a client. */
import { createHash, randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';

export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export type Frame = { opcode: number; payload: Buffer; fin: boolean; masked: boolean };

const LENGTH_16 = 126;
const LENGTH_64 = 127;
/** RFC 6455 section 1.3. */
const ACCEPT_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/* oxlint-disable no-bitwise */

const applyMask = (bytes: Buffer, mask: Buffer): void => {
  for (let at = 0; at < bytes.length; at++) bytes[at]! ^= mask[at & 3]!;
};

/** RFC 6455 section 5.2, with the shortest form of the length. Clients mask. */
export const encodeFrame = ({ opcode, payload, fin, masked }: Frame): Buffer => {
  const { length } = payload;
  const lengthBytes = length < LENGTH_16 ? 0 : length < 65_536 ? 2 : 8;
  const head = Buffer.alloc(2 + lengthBytes + (masked ? 4 : 0));
  head[0] = (fin ? 0x80 : 0) | opcode;
  head[1] = (masked ? 0x80 : 0) | (lengthBytes === 0 ? length : lengthBytes === 2 ? LENGTH_16 : LENGTH_64);
  if (lengthBytes === 2) head.writeUInt16BE(length, 2);
  if (lengthBytes === 8) head.writeBigUInt64BE(BigInt(length), 2);
  if (!masked) return Buffer.concat([head, payload]);
  const mask = randomBytes(4);
  mask.copy(head, head.length - 4);
  const frame = Buffer.concat([head, payload]);
  applyMask(frame.subarray(head.length), mask);
  return frame;
};

/** Makes frames of bytes as they come. */
export class FrameReader {
  readonly #onFrame: (frame: Frame) => void;
  #chunks: Buffer[] = [];
  #length = 0;
  /** Bytes of the frame at hand, as far as its head tells. */
  #wanted = 2;

  constructor(onFrame: (frame: Frame) => void) {
    this.#onFrame = onFrame;
  }

  push(bytes: Buffer): void {
    this.#chunks.push(bytes);
    this.#length += bytes.length;
    while (this.#length >= this.#wanted) {
      const input = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
      this.#chunks = [input];
      const head = headOf(input);
      if (head === null || input.length < head.length + head.payloadLength) {
        this.#wanted = head === null ? headLengthOf(input) : head.length + head.payloadLength;
        continue;
      }
      const end = head.length + head.payloadLength;
      const payload = Buffer.from(input.subarray(head.length, end));
      if (head.masked) applyMask(payload, input.subarray(head.length - 4, head.length));
      this.#chunks = end === input.length ? [] : [input.subarray(end)];
      this.#length -= end;
      this.#wanted = 2;
      this.#onFrame({ opcode: input[0]! & 0x0f, payload, fin: (input[0]! & 0x80) !== 0, masked: head.masked });
    }
  }
}

const headLengthOf = (input: Buffer): number => {
  const short = input[1]! & 0x7f;
  return 2 + (short === LENGTH_64 ? 8 : short === LENGTH_16 ? 2 : 0) + ((input[1]! & 0x80) === 0 ? 0 : 4);
};

const headOf = (input: Buffer): { length: number; payloadLength: number; masked: boolean } | null => {
  const length = headLengthOf(input);
  if (input.length < length) return null;
  const short = input[1]! & 0x7f;
  const payloadLength =
    short === LENGTH_64 ? Number(input.readBigUInt64BE(2)) : short === LENGTH_16 ? input.readUInt16BE(2) : short;
  return { length, payloadLength, masked: (input[1]! & 0x80) !== 0 };
};

export const newWebSocketKey = (): string => randomBytes(16).toString('base64');

export const webSocketAcceptOf = (key: string): string =>
  createHash('sha1').update(`${key}${ACCEPT_GUID}`).digest('base64');

/** The fields that ask for a WebSocket, each with its line's end. */
export const webSocketFields = (key: string): string =>
  `Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n`;

/** The answer to a request with that key. `more`: further fields, each with its line's end. */
export const switchingProtocols = (key: string, more = ''): string =>
  `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
  `Sec-WebSocket-Accept: ${webSocketAcceptOf(key)}\r\n${more}\r\n`;

/** Answers each frame as Autobahn's echo server does: data as it came, ping with pong, close with close and the end. */
export const echoFrames = (socket: Socket): FrameReader =>
  new FrameReader((frame) => {
    const send = (opcode: number) => {
      if (socket.write(encodeFrame({ ...frame, opcode, masked: false })) || socket.isPaused()) return;
      // Whoever doesn't read his echoes sends no more.
      socket.pause();
      socket.once('drain', () => socket.resume());
    };
    if (frame.opcode === OPCODE.pong) return;
    if (frame.opcode === OPCODE.close) {
      send(OPCODE.close);
      socket.end();
    } else send(frame.opcode === OPCODE.ping ? OPCODE.pong : frame.opcode);
  });
