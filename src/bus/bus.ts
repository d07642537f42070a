/**
 * How events travel between nodes. A node works fully without it: what is published while nobody is connected is lost,
 * and whatever must not be lost is sent again from the journal by the services below.
 */

export type BusMessage = {
  subject: string;
  data: Uint8Array;
  /** Where an answer is expected. */
  reply: string | null;
};

/** `code` is an ErrorCode of `errors.ts`; null before the first attempt has ended. */
export type BusStatus =
  | { connected: true; server: string; version: string; sinceMs: number }
  | { connected: false; code: string | null; message: string; sinceMs: number };

export type Bus = {
  readonly status: BusStatus;
  /** Messages that were larger than the server takes, and were not published. */
  readonly tooLarge: number;
  /** Told of each change, from the next one on. */
  onStatus(listener: (status: BusStatus) => void): () => void;
  publish(subject: string, data: Uint8Array): void;
  /** Stands through reconnects. The subject may end in or hold `*`. Our own messages are not heard. */
  subscribe(subject: string, heard: (message: BusMessage) => void): () => void;
  /** @throws UnderstudyError NATS_TIMEOUT, NATS_OFFLINE */
  request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array>;
  /**
   * Resolves when what we published has reached the server, and what it had for us before that has been heard.
   * @throws UnderstudyError NATS_TIMEOUT, NATS_OFFLINE, NATS_UNREACHABLE
   */
  flush(timeoutMs: number): Promise<void>;
  /** A service of the bus's own thread (see `services.ts`). @throws UnderstudyError of whatever the service throws */
  call(service: string, method: string, ...args: unknown[]): Promise<unknown>;
  /** What a service has to tell by itself. */
  onEvent(service: string, heard: (event: { type: string } & Record<string, unknown>) => void): () => void;
  close(): Promise<void>;
};

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export const encodeJson = (value: unknown): Uint8Array => encoder.encode(JSON.stringify(value));
/** Null for what isn't JSON: anybody may publish anything. */
export const decodeJson = (data: Uint8Array): unknown => {
  try {
    return JSON.parse(decoder.decode(data)) as unknown;
  } catch {
    return null;
  }
};
