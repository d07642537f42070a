/**
 * A client under constant load, on a host of the lab: `loadClient.ts PERIOD_MS TIMEOUT_MS PORT ADDRESS…`. Each period it
 * begins an attempt at each address (a connection of its own, one request), whatever became of the ones before. Five times
 * a second it prints a line of JSON: a `LoadTick`, which counts what ended since the last one.
 */
import { connect } from 'node:net';
import { nowMs } from '../../deploy/lab/process.ts';

export type AddressTick = {
  answered: number;
  failed: number;
  /** Of those that ended: from the start of the last attempt before it that was answered to the next one, the longest. */
  gapMs: number;
  /** The attempts of the present unbroken row of answers: when the first and the last one began. 0: none yet. */
  answeredFromMs: number;
  answeredToMs: number;
  /** How often each server answered, by its text. */
  by: Record<string, number>;
};

export type LoadTick = { atMs: number; addresses: Record<string, AddressTick> };

type Attempt = { beganMs: number; isOver: boolean; text: string | null };

const TICK_MS = 200;

const [periodMs, timeoutMs, port, ...addresses] = process.argv.slice(2) as [string, string, string, ...string[]];

class Address {
  readonly #host: string;
  readonly #request: string;
  /** In the order in which they began; they end in another one. */
  readonly #attempts: Attempt[] = [];
  #tick: AddressTick = { answered: 0, failed: 0, gapMs: 0, answeredFromMs: 0, answeredToMs: 0, by: {} };
  #isFailing = false;

  constructor(host: string) {
    this.#host = host;
    this.#request = `GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`;
  }

  attempt(): void {
    const attempt: Attempt = { beganMs: nowMs(), isOver: false, text: null };
    this.#attempts.push(attempt);
    const socket = connect({ host: this.#host, port: Number(port) });
    let answer = '';
    const end = () => {
      if (attempt.isOver) return;
      attempt.isOver = true;
      attempt.text = textOf(answer);
      clearTimeout(timer);
      socket.destroy();
      this.#countInOrder();
    };
    const timer = setTimeout(end, Number(timeoutMs));
    socket.once('connect', () => socket.write(this.#request));
    socket.on('data', (chunk: Buffer) => (answer += chunk.toString('latin1')));
    socket.once('error', end);
    socket.once('close', end);
  }

  takeTick(): AddressTick {
    const tick = this.#tick;
    this.#tick = { ...tick, answered: 0, failed: 0, gapMs: 0, by: {} };
    return tick;
  }

  #countInOrder(): void {
    const tick = this.#tick;
    while (this.#attempts[0]?.isOver) {
      const { beganMs, text } = this.#attempts.shift()!;
      if (text === null) {
        tick.failed++;
        this.#isFailing = true;
        continue;
      }
      tick.answered++;
      tick.by[text] = (tick.by[text] ?? 0) + 1;
      if (this.#isFailing && tick.answeredToMs > 0) tick.gapMs = Math.max(tick.gapMs, beganMs - tick.answeredToMs);
      if (this.#isFailing || tick.answeredFromMs === 0) tick.answeredFromMs = beganMs;
      this.#isFailing = false;
      tick.answeredToMs = beganMs;
    }
  }
}

/** The body of a whole answer with status 200, else null. */
const textOf = (answer: string): string | null => {
  const headEnd = answer.indexOf('\r\n\r\n');
  if (headEnd === -1 || !answer.startsWith('HTTP/1.1 200 ')) return null;
  const length = Number(/\r\ncontent-length: (\d+)/i.exec(answer.slice(0, headEnd))?.[1] ?? NaN);
  const body = answer.slice(headEnd + 4);
  return body.length === length ? body.trim() : null;
};

const asked = new Map(addresses.map((host) => [host, new Address(host)]));

let next = performance.now();
const schedule = (): void => {
  for (const address of asked.values()) address.attempt();
  const at = performance.now();
  next = Math.max(next + Number(periodMs), at);
  setTimeout(schedule, next - at);
};
schedule();

setInterval(() => {
  const ticks = [...asked].map(([host, address]) => [host, address.takeTick()] as const);
  const tick: LoadTick = { atMs: nowMs(), addresses: Object.fromEntries(ticks) };
  process.stdout.write(`${JSON.stringify(tick)}\n`);
}, TICK_MS);
