/** The hands of the courier: the bus thread's log service ships the journal, and the machine knows how far it is. */
import { courierHands } from '../../actors/courier.ts';
import type { Hands } from '../../actors/system.ts';
import type { BusStatus } from '../bus/bus.ts';
import type { DelayHistogram } from '../bus/logFigures.ts';
import type { LogEvent, LogProgress } from '../bus/logService.ts';
import { messageOf } from '../errors.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';

export const COURIER_ACTOR = 'courier';

const SERVICE = 'log';

export type CourierFigures = {
  /** The last seq that the cluster log has; null before that is known. */
  shippedSeq: number | null;
  /** Records of the journal's file that it lacks. */
  behind: number;
  /** Shipped since the start. */
  records: number;
  messages: number;
  bytes: number;
  /** From a decision to its place in the stream, of the last batches, in milliseconds. */
  delayMs: { p50: number; p99: number } | null;
};

export class CourierHost implements ClusterPart {
  readonly hands: Record<string, Hands>;
  readonly #ports: ClusterPorts;
  #progress: LogProgress | null = null;
  #trouble: { state: 'refused' | 'fenced'; message: string } | null = null;
  #waking = false;
  #wakeWanted = false;
  #stopListening: (() => void)[] = [];

  constructor(ports: ClusterPorts) {
    this.#ports = ports;
    this.hands = { courier: courierHands(() => void this.#call('ship')) };
  }

  start(): void {
    const { bus, journal, system } = this.#ports;
    system().start(COURIER_ACTOR, 'courier', {});
    this.#stopListening = [
      bus.onEvent(SERVICE, (event) => this.#hear(event as unknown as LogEvent)),
      bus.onStatus((status) => this.#tellStatus(status)),
    ];
    journal.onWritten(() => this.#wake());
    if (bus.status.connected) this.#tellStatus(bus.status);
  }

  /** What the journal still writes is shipped while the bus closes. */
  async stop(): Promise<void> {
    for (const stop of this.#stopListening) stop();
  }

  get state(): string {
    return this.#ports.system().get(COURIER_ACTOR)?.state ?? 'offline';
  }

  /** For the operator, while the cluster log can't take this node's records; null otherwise. */
  problem(): string | null {
    const trouble = this.#trouble;
    if (trouble === null || trouble.state !== this.state) return null;
    return trouble.state === 'fenced'
      ? `fenced off from the cluster log: another node named ${this.#ports.node} writes there (${trouble.message}); give one of them another name`
      : `the cluster log takes no records: ${trouble.message}`;
  }

  /** Of all decisions since the start. */
  get delays(): DelayHistogram | null {
    return this.#progress?.delay ?? null;
  }

  figures(): CourierFigures {
    const { shippedSeq = null, records = 0, messages = 0, bytes = 0 } = this.#progress ?? {};
    const { delayMs = null } = this.#progress ?? {};
    const { writtenSeq } = this.#ports.journal.status();
    // What is known of the log comes a moment after it: a little more may be there already.
    const behind = shippedSeq === null ? writtenSeq : Math.max(0, writtenSeq - shippedSeq);
    return { shippedSeq, behind, records, messages, bytes, delayMs };
  }

  #hear(event: LogEvent): void {
    const { log, node } = this.#ports;
    switch (event.type) {
      case 'progress': {
        const { type: _type, ...progress } = event;
        this.#progress = progress;
        return;
      }
      case 'located':
        return this.#send({ type: 'log.located', behind: event.behind });
      case 'caughtUp':
        return this.#send({ type: 'log.caughtUp' });
      case 'fellBehind':
        return this.#send({ type: 'log.fellBehind', behind: event.behind });
      case 'refused': {
        const { code, message } = event;
        if (this.#trouble?.message !== message || this.state !== 'refused')
          log.error({ code }, `the cluster log takes no records: ${message}`);
        this.#trouble = { state: 'refused', message };
        return this.#send({ type: 'log.refused', code, message });
      }
      case 'fenced': {
        const { journal } = event;
        if (this.state !== 'fenced') log.error(`another node named ${node} writes to the cluster log: fenced off`);
        this.#trouble = { state: 'fenced', message: `journal ${journal}` };
        return this.#send({ type: 'log.fenced', journal });
      }
    }
  }

  #tellStatus(status: BusStatus): void {
    if (status.connected) this.#send({ type: 'nats.connected', server: status.server });
    else this.#send({ type: 'nats.disconnected', code: status.code ?? 'NATS_OFFLINE', message: status.message });
  }

  #send(event: { type: string } & Record<string, unknown>): void {
    this.#ports.system().send(COURIER_ACTOR, event);
  }

  #wake(): void {
    this.#wakeWanted = true;
    if (!this.#waking) void this.#wakeInTurn();
  }

  /** One call at a time, however fast the journal commits. */
  async #wakeInTurn(): Promise<void> {
    this.#waking = true;
    while (this.#wakeWanted) {
      this.#wakeWanted = false;
      await this.#call('written');
    }
    this.#waking = false;
  }

  async #call(method: 'ship' | 'written'): Promise<void> {
    try {
      await this.#ports.bus.call(SERVICE, method);
    } catch (error) {
      // The bus thread has died: it is started again, and what it then finds is shipped.
      this.#ports.log.debug(`log ${method}: ${messageOf(error)}`);
    }
  }
}
