/** Who else is alive under this node's name: heartbeats that carry another journal's identity. */
import type { NatsConnection } from '@nats-io/transport-node';
import { decodeJson } from './bus.ts';

/** A node that was heard so short a while ago is alive: ten heartbeats. */
export const ALIVE_MS = 10_000;
/** Whoever is alive has been heard after three heartbeats and a bit. */
const LISTEN_MS = 3_500;

export class LogRivals {
  readonly #subject: string;
  #listening: NatsConnection | null = null;
  #sinceMs = 0;
  #heard: { journal: string; atMs: number }[] = [];

  constructor(subject: string) {
    this.#subject = subject;
  }

  /** A subscription stands through reconnects; what was missed meanwhile has to be heard anew. */
  listen(connection: NatsConnection, nowMs: number): void {
    this.#sinceMs = nowMs;
    if (this.#listening === connection) return;
    this.#listening = connection;
    connection.subscribe(this.#subject, {
      callback: (error, message) => {
        if (error) return;
        const { journal, leaving } = (decodeJson(message.data) ?? {}) as { journal?: unknown; leaving?: unknown };
        if (typeof journal === 'string') this.#note(journal, leaving === true ? -Infinity : performance.now());
      },
    });
  }

  /** A journal other than ours whose node is alive; null when none is. */
  alive(ownJournal: string, nowMs: number): string | null {
    this.#heard = this.#heard.filter(({ atMs }) => nowMs - atMs < ALIVE_MS);
    return this.#heard.findLast(({ journal }) => journal !== ownJournal)?.journal ?? null;
  }

  /** How long to listen on before nobody heard means nobody there. */
  listenOnMs(nowMs: number): number {
    return Math.max(0, this.#sinceMs + LISTEN_MS - nowMs);
  }

  #note(journal: string, atMs: number): void {
    this.#heard = [...this.#heard.filter((other) => other.journal !== journal), { journal, atMs }];
  }
}
