/** Constant load from a host of the lab, and what it has seen from a moment on: failures, the longest gap, who answered. */
import { join } from 'node:path';
import type { Host } from '../../deploy/lab/lab.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import type { AddressTick, LoadTick } from './loadClient.ts';

const PERIOD_MS = 20;
/** Under a second, after which the kernel would ask again by itself. */
const TIMEOUT_MS = 900;
/** Traffic flows when every attempt of this time was answered. */
const FLOWING_MS = 500;

export type Seen = { answered: number; failed: number; longestGapMs: number; by: Record<string, number> };

export class Load {
  readonly #client: LabProcess;
  readonly #addresses: string[];

  private constructor(client: LabProcess, addresses: string[]) {
    this.#client = client;
    this.#addresses = addresses;
  }

  /** On port 80 of each address; the first answers may come later. */
  static async start(host: Host, addresses: string[]): Promise<Load> {
    const program = join(import.meta.dirname, 'loadClient.ts');
    const options = [PERIOD_MS, TIMEOUT_MS, 80].map(String);
    const client = await host.spawn(process.execPath, [program, ...options, ...addresses]);
    await client.waitFor(/^\{/);
    return new Load(client, addresses);
  }

  /** For `since`. */
  mark(): number {
    return this.#client.lines.length;
  }

  /** Over all addresses, or of one. */
  since(mark: number, address?: string): Seen {
    const seen: Seen = { answered: 0, failed: 0, longestGapMs: 0, by: {} };
    for (const { text } of this.#client.lines.slice(mark)) {
      const { addresses } = JSON.parse(text) as LoadTick;
      for (const [host, tick] of Object.entries(addresses))
        if (address === undefined || host === address) add(seen, tick);
    }
    return seen;
  }

  /** Until a whole row of attempts that began after this call was answered, at every address. */
  async untilFlowing(timeoutMs?: number): Promise<void> {
    const sinceMs = nowMs();
    await until(
      `traffic flows through ${this.#addresses.join(' and ')}`,
      async () => {
        const last = this.#client.lines.at(-1)!.text;
        const { addresses } = JSON.parse(last) as LoadTick;
        return Object.values(addresses).every(
          ({ answeredFromMs, answeredToMs }) => answeredToMs - Math.max(answeredFromMs, sinceMs) >= FLOWING_MS,
        );
      },
      timeoutMs,
    );
  }

  async end(): Promise<void> {
    await this.#client.end('SIGKILL');
  }
}

const add = (seen: Seen, tick: AddressTick): void => {
  seen.answered += tick.answered;
  seen.failed += tick.failed;
  seen.longestGapMs = Math.max(seen.longestGapMs, tick.gapMs);
  for (const [text, count] of Object.entries(tick.by)) seen.by[text] = (seen.by[text] ?? 0) + count;
};
