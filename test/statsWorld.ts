/** A node without threads: its actors and its figures are real, traffic is whatever a test counts. */
import { VirtualClock } from '../actors/clock.ts';
import { seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import { machines } from '../machines/index.ts';
import { loadConfig } from '../src/config/load.ts';
import type { LastProbe, UnderstudyNode } from '../src/node.ts';
import { Counters, memoryOfWorker, allocate, figuresOf, RateSampler } from '../src/proxy/counters.ts';
import { Histograms, latencyOf } from '../src/proxy/histograms.ts';
import type { Kind } from '../src/proxy/histograms.ts';
import { Lateness } from '../src/lateness.ts';
import { actorsOf, frontendSlotName, poolId, serverId } from '../src/wiring.ts';

const START_US = 1_000_000_000_000;

export class StatsWorld {
  readonly node: UnderstudyNode;
  readonly clock = new VirtualClock({ wallUs: START_US, monoUs: 0 });
  readonly system: ActorSystem;
  readonly counters: Counters;
  readonly histograms: Histograms;
  readonly lastProbes = new Map<string, LastProbe>();
  readonly ejections = new Map<string, number>();
  #slots = new Map<string, number>();

  constructor(yaml: string) {
    const loaded = loadConfig(yaml, {}, '/');
    if ('problems' in loaded) throw new Error(loaded.problems.map(({ message }) => message).join('\n'));
    const { config } = loaded;
    const faults: unknown[] = [];
    this.system = new ActorSystem({
      clock: this.clock,
      random: seededRandom(1),
      recorder: { append: () => ({ seq: null }) },
      machines,
      hands: {},
      onFault: ({ error }) => faults.push(error),
    });
    for (const { id, machine, input } of actorsOf(config)) this.system.start(id, machine, input);
    if (faults.length > 0) throw new Error('an actor did not start', { cause: faults[0] });
    const memory = allocate();
    const worker = memoryOfWorker(memory, 0);
    this.counters = new Counters(worker);
    this.histograms = new Histograms(worker.histograms);
    const rates = new RateSampler(memory);
    for (const name of Object.keys(config.frontends)) this.slot(frontendSlotName(name));
    for (const [pool, { servers }] of Object.entries(config.backends)) {
      this.slot(poolId(pool));
      for (const { name } of servers) this.slot(serverId(pool, name));
    }
    const dataPlane = {
      figures: (name: string) => (this.#slots.has(name) ? figuresOf(memory, this.slot(name)) : null),
      rates: (name: string) => (this.#slots.has(name) ? rates.of(this.slot(name)) : null),
      latency: (name: string, kind: Kind) =>
        this.#slots.has(name) ? latencyOf([worker.histograms], this.slot(name), kind) : null,
      sampleRates: (nowMs: number) => rates.sample(this.#slots.size, nowMs),
    };
    const journal = { status: () => ({ failure: null, unwrittenRows: 0, usedBytes: 0, lastSeq: 0 }) };
    this.node = {
      config,
      clock: this.clock,
      system: this.system,
      dataPlane,
      journal,
      accessLog: { figures: () => ({ logged: 5, written: 3, dropped: 1, lost: 1 }) },
      lastProbes: this.lastProbes,
      ejections: this.ejections,
      lateness: new Lateness(),
      startedUs: START_US,
    } as unknown as UnderstudyNode;
  }

  slot(name: string): number {
    const slot = this.#slots.get(name) ?? this.#slots.size;
    this.#slots.set(name, slot);
    return slot;
  }

  after(seconds: number): void {
    this.clock.advanceTo(this.clock.monoUs() + seconds * 1e6);
  }

  checked(server: string, ok: boolean, code = ok ? 'L7OK' : 'L4CON', message = ''): void {
    this.lastProbes.set(`checker/${server}`, { ok, code, message, durationMs: 3.2, atUs: this.clock.wallUs() });
    const type = ok ? 'check.passed' : 'check.failed';
    this.system.send(`server/${server}`, { type, code, message, durationMs: 3.2 } as { type: string });
  }

  operator(server: string, word: string, more: object = {}): void {
    this.system.send(`server/${server}`, { type: `operator.${word}`, ...more });
  }
}

export const collect = async <T>(parts: AsyncIterable<T>): Promise<T[]> => {
  const all: T[] = [];
  for await (const part of parts) all.push(part);
  return all;
};
