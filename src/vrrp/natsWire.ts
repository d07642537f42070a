/**
 * Adverts over NATS: the same packets, on a subject that is the router's own, with the sender's address beside them.
 *
 * A wire that is silent may be a master that is dead, or NATS that is. So whoever is to act on silence asks NATS first
 * (a round trip, behind which nothing waits), and a master asks with each advert: it knows that nobody hears it before
 * its peers have waited long enough to take over.
 */
import { isIP } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { z } from 'zod';
import type { RouterEvent } from '../../machines/vrrpRouter.ts';
import { decodeJson, encodeJson } from '../bus/bus.ts';
import type { Bus, BusStatus } from '../bus/bus.ts';
import type { Subjects } from '../bus/subjects.ts';
import { codeOf, messageOf } from '../errors.ts';

/** A NATS server that takes longer for a round trip is away for whoever wants to become master. */
const ANSWER_MS = 1_000;
/** One that has not answered is asked again after this. */
const ASK_AGAIN_MS = 500;
/**
 * Of a master's advert: peers wait three intervals and a little from the last one that they got, and the next one is
 * sent, and asked about, an interval later. Two and a half intervals are before that.
 */
const ANSWER_INTERVALS = 1.5;
/** A busy machine, and a NATS server that elects, may need this long. */
const ANSWER_LEAST_MS = 250;
/** An advert with 255 IPv6 addresses, sealed, has some 4,200 bytes. */
const MAX_PACKET_CHARACTERS = 8_192;

export type NatsPort = { bus: Bus; subjects: Subjects; node: string };

export type NatsRouter = {
  name: string;
  source: string;
  advertMs: number;
  hear(node: string, source: string, packet: Buffer): void;
  report(event: RouterEvent): void;
};

type Opened = NatsRouter & {
  /** Null until it is known. */
  joined: boolean | null;
  pulsing: boolean;
  unsubscribe(): void;
};

export type NatsSocket = {
  /** The code of what kept it from being sent. */
  send(packet: Buffer): string | null;
  /** Called when all that NATS had has been heard; never when NATS doesn't answer, which is reported. */
  look(done: () => void): void;
  close(): void;
};

const message = z.object({
  node: z.string().min(1).max(256),
  source: z.string().refine((text) => isIP(text) !== 0),
  packet: z.base64().max(MAX_PACKET_CHARACTERS),
});

export class NatsWire {
  /** Messages on our subjects that were no adverts. */
  malformed = 0;
  readonly #port: NatsPort;
  readonly #opened = new Set<Opened>();
  readonly #stopWatching: () => void;
  #probing = false;

  constructor(port: NatsPort) {
    this.#port = port;
    this.#stopWatching = port.bus.onStatus((status) => this.#statusChanged(status));
  }

  open(router: NatsRouter): NatsSocket {
    const { bus, subjects } = this.#port;
    const unsubscribe = bus.subscribe(subjects.vrrp(router.name), ({ data }) => this.#hear(opened, data));
    const opened: Opened = { ...router, joined: null, pulsing: false, unsubscribe };
    this.#opened.add(opened);
    const { status } = bus;
    if (status.connected) void this.#probe();
    else this.#lose(opened, status.code ?? 'NATS_OFFLINE', status.message);
    return {
      send: (packet) => this.#send(opened, packet),
      look: (done) => void this.#look(opened, done),
      close: () => {
        unsubscribe();
        this.#opened.delete(opened);
      },
    };
  }

  end(): void {
    this.#stopWatching();
  }

  #statusChanged(status: BusStatus): void {
    if (status.connected) void this.#probe();
    else this.#loseAll(status.code ?? 'NATS_OFFLINE', status.message);
  }

  #hear(opened: Opened, data: Uint8Array): void {
    const read = message.safeParse(decodeJson(data));
    if (!read.success) {
      this.malformed++;
      return;
    }
    const { node, source, packet } = read.data;
    if (this.#opened.has(opened)) opened.hear(node, source, Buffer.from(packet, 'base64'));
  }

  #send(opened: Opened, packet: Buffer): string | null {
    const { bus, subjects, node } = this.#port;
    const { name, source } = opened;
    const { status } = bus;
    if (!status.connected) return status.code ?? 'NATS_OFFLINE';
    bus.publish(subjects.vrrp(name), encodeJson({ node, source, packet: packet.toString('base64') }));
    void this.#pulse(opened);
    return null;
  }

  async #pulse(opened: Opened): Promise<void> {
    if (opened.pulsing || opened.joined !== true) return;
    opened.pulsing = true;
    await this.#isAnswered(Math.max(ANSWER_LEAST_MS, ANSWER_INTERVALS * opened.advertMs));
    opened.pulsing = false;
  }

  async #look(opened: Opened, done: () => void): Promise<void> {
    if ((await this.#isAnswered(ANSWER_MS)) && this.#opened.has(opened)) done();
  }

  /** Whether NATS has delivered what we sent, and what it had for us. If not, all are told. */
  async #isAnswered(withinMs: number): Promise<boolean> {
    try {
      await this.#port.bus.flush(withinMs);
      return true;
    } catch (error) {
      this.#loseAll(codeOf(error), messageOf(error));
      void this.#probe();
      return false;
    }
  }

  /** Asks until all routers are joined, for as long as there is a connection to ask. */
  async #probe(): Promise<void> {
    if (this.#probing) return;
    this.#probing = true;
    const { bus } = this.#port;
    for (;;) {
      // One that is opened meanwhile is subscribed behind this question.
      const asking = [...this.#opened].filter(({ joined }) => joined !== true);
      if (asking.length === 0 || !bus.status.connected) break;
      try {
        await bus.flush(ANSWER_MS);
        for (const opened of asking) if (bus.status.connected) this.#join(opened);
      } catch (error) {
        this.#loseAll(codeOf(error), messageOf(error));
        await wait(ASK_AGAIN_MS, undefined, { ref: false });
      }
    }
    this.#probing = false;
  }

  #join(opened: Opened): void {
    if (opened.joined === true || !this.#opened.has(opened)) return;
    opened.joined = true;
    opened.report({ type: 'bus.joined' });
  }

  #lose(opened: Opened, code: string, why: string): void {
    if (opened.joined === false) return;
    opened.joined = false;
    opened.report({ type: 'bus.lost', code, message: why });
  }

  #loseAll(code: string, why: string): void {
    for (const opened of [...this.#opened]) this.#lose(opened, code, why);
  }
}
