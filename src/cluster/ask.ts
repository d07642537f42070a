/**
 * Questions to one node, and its answers: whoever is connected to any node can look at all of them. Parts of a node
 * register what they answer; a question of a type that nobody has registered is refused.
 */
import { gunzip, gzip } from 'node:zlib';
import { promisify } from 'node:util';
import { z } from 'zod';
import type { Hands } from '../../actors/system.ts';
import { decodeJson, encodeJson } from '../bus/bus.ts';
import type { BusMessage } from '../bus/bus.ts';
import { isErrorCode, messageOf, UnderstudyError } from '../errors.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';

/** A node answers within milliseconds; one that is stopped or cut off is not worth more of an operator's time. */
export const ASK_MS = 3_000;
/** NATS takes messages of 1 MiB, if it is not told otherwise. */
const MAX_ANSWER_BYTES = 1_000_000;
/** Below this a compressed answer is not sooner there. */
const COMPRESS_FROM_BYTES = 16_384;
/** What a compressed answer may become: the state of some 100,000 actors. */
const MAX_EXPANDED_BYTES = 64 * 1024 * 1024;

type Answerer = (payload: unknown) => unknown;

const question = z.object({ type: z.string(), payload: z.unknown().optional() });

const reply = z.union([
  z.object({ ok: z.literal(true), value: z.unknown().optional() }),
  z.object({ ok: z.literal(false), code: z.string(), message: z.string() }),
]);
type Reply = z.output<typeof reply>;

export class Ask implements ClusterPart {
  readonly hands: Record<string, Hands> = {};
  readonly #ports: ClusterPorts;
  readonly #answerers = new Map<string, Answerer>();
  #end: () => void = () => {};

  constructor(ports: ClusterPorts) {
    this.#ports = ports;
  }

  start(): void {
    const { bus, subjects, node } = this.#ports;
    this.#end = bus.subscribe(subjects.ask(node), (message) => void this.#hear(message));
  }

  async stop(): Promise<void> {
    this.#end();
  }

  /** What this node answers to questions of a type. What `answer` throws is the asker's, with its code. */
  answer(type: string, answer: Answerer): void {
    this.#answerers.set(type, answer);
  }

  /**
   * Asks a node; this one too.
   * @throws UnderstudyError NATS_TIMEOUT, NATS_OFFLINE, and what the node refuses with
   */
  async node(name: string, type: string, payload: unknown = null, timeoutMs = ASK_MS): Promise<unknown> {
    const { bus, subjects, node } = this.#ports;
    if (name === node) return valueOf(await this.#answer({ type, payload }), node);
    let data: Uint8Array;
    try {
      data = await bus.request(subjects.ask(name), encodeJson({ type, payload }), timeoutMs);
    } catch (error) {
      if (!(error instanceof UnderstudyError) || error.code !== 'NATS_TIMEOUT') throw error;
      throw new UnderstudyError('NATS_TIMEOUT', `node ${name} doesn't answer: ${error.message}`);
    }
    const read = reply.safeParse(decodeJson(await expanded(data)));
    if (!read.success) throw new UnderstudyError('NATS_TIMEOUT', `node ${name} answers nothing that can be read`);
    return valueOf(read.data, name);
  }

  async #hear({ data, reply: to }: BusMessage): Promise<void> {
    if (to === null) return;
    const { node, bus } = this.#ports;
    const asked = question.safeParse(decodeJson(data));
    const answer = asked.success ? await this.#answer(asked.data) : refusal('USAGE', 'that is no question');
    let bytes = await compressed(encodeJson(answer));
    if (bytes.length > MAX_ANSWER_BYTES)
      bytes = encodeJson(refusal('NODE_REFUSED', `the answer of ${node} is too large for NATS; ask its own API`));
    bus.publish(to, bytes);
  }

  async #answer({ type, payload }: { type: string; payload?: unknown }): Promise<Reply> {
    const answer = this.#answerers.get(type);
    if (!answer) {
      const known = [...this.#answerers.keys()].sort().join(', ');
      return refusal('USAGE', `node ${this.#ports.node} answers no ${type}; it answers ${known}`);
    }
    try {
      return { ok: true, value: await answer(payload) };
    } catch (error) {
      return refusal(error instanceof UnderstudyError ? error.code : 'NODE_REFUSED', messageOf(error));
    }
  }
}

const refusal = (code: string, message: string): Reply => ({ ok: false, code, message });

const valueOf = (answer: Reply, node: string): unknown => {
  if (answer.ok) return answer.value;
  // Of a newer version it may be a code that is not known here.
  const code = isErrorCode(answer.code) ? answer.code : 'NODE_REFUSED';
  throw new UnderstudyError(code, `node ${node}: ${answer.message}`);
};

const isCompressed = (data: Uint8Array): boolean => data[0] === 0x1f && data[1] === 0x8b;

const compressed = async (data: Uint8Array): Promise<Uint8Array> =>
  data.length < COMPRESS_FROM_BYTES ? data : promisify(gzip)(data);

/** Empty for what can't be expanded. */
const expanded = async (data: Uint8Array): Promise<Uint8Array> => {
  if (!isCompressed(data)) return data;
  try {
    return await promisify<Uint8Array, object, Buffer>(gunzip)(data, { maxOutputLength: MAX_EXPANDED_BYTES });
  } catch {
    return new Uint8Array();
  }
};
