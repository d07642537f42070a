/** An Understudy node on a host of the lab: its configuration, its states, its journal. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import type { Host } from './lab.ts';
import type { Exit, LabProcess, Line } from './process.ts';
import { until } from './until.ts';
import type { Reason, RouterEvent } from '../../machines/vrrpRouter.ts';
import type { StateView } from '../../src/api/state.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { explain } from '../../src/worlds/explain.ts';
import type { Explanation } from '../../src/worlds/explain.ts';
import { verify } from '../../src/worlds/replay.ts';
import type { VerifyResult } from '../../src/worlds/replay.ts';

const program = resolve(import.meta.dirname, '../../bin/understudy');
const API = 'http://127.0.0.1:8404';
/** Three seconds of work, and as long again for NATS; three nodes that start together on two busy cores take more. */
const START_MS = 60_000;

export type NodeConfig = Record<string, unknown> & { routers: Record<string, unknown> };

export type RouterState = 'initialize' | 'backup' | 'master' | 'fault';

export type RouterDiscard = Extract<RouterEvent, { type: 'advert.discarded' }>;

export type RouterNotice = { state: string; priority: number; reason: Reason };

const STATE_LINE = /"msg":"router\/(\S+) is (initialize|backup|master|fault)/;

export class LabNode {
  readonly host: Host;
  readonly name: string;
  readonly journal: string;
  readonly config: string;
  process: LabProcess | null = null;

  private constructor(host: Host, folder: string) {
    this.host = host;
    this.name = host.name;
    this.journal = join(folder, 'node.db');
    this.config = join(folder, 'node.yaml');
  }

  /** Starts a node; `config` lacks what every node of a lab has. */
  static async start(host: Host, config: NodeConfig): Promise<LabNode> {
    const folder = join(host.folder, `node-${host.name}`);
    mkdirSync(folder, { recursive: true });
    const node = new LabNode(host, folder);
    node.configure(config);
    await node.run();
    return node;
  }

  /** Writes another configuration; takes effect at the next start or reload. */
  configure(config: NodeConfig): void {
    const whole = { node: this.name, journal: { path: './node.db' }, api: { listen: '127.0.0.1:8404' }, workers: 1 };
    writeFileSync(this.config, stringify({ ...whole, ...config }));
  }

  /** `wrapper` is a program that runs the one that follows its arguments, such as `setpriv --reuid=…`. */
  async run(wrapper: string[] = []): Promise<void> {
    const [command, ...args] = [...wrapper, program, 'run', this.config];
    this.process = await this.host.spawn(command, args);
    await this.process.waitFor(/is running; its API is at/, { timeoutMs: START_MS });
  }

  get running(): LabProcess {
    if (!this.process) throw new Error(`${this.name} was not started`);
    return this.process;
  }

  /** Until a line of the log from `after` (an index) on says that the router enters the state. */
  untilState(router: string, state: RouterState, options: { after?: number; timeoutMs?: number } = {}): Promise<Line> {
    return this.running.waitFor(new RegExp(`"msg":"router/${router} is ${state}`), options);
  }

  /** The routers' states as the log has them. */
  states(): Record<string, RouterState> {
    const states: Record<string, RouterState> = {};
    for (const { text } of this.running.lines) {
      const match = STATE_LINE.exec(text);
      if (match) states[match[1]!] = match[2] as RouterState;
    }
    return states;
  }

  isMaster(router = 'gateway'): boolean {
    return this.process !== null && this.process.exit === null && this.states()[router] === 'master';
  }

  async state(): Promise<StateView> {
    return JSON.parse(await this.host.run('curl', ['-s', '-m', '5', `${API}/api/state`])) as StateView;
  }

  async metrics(): Promise<string> {
    return this.host.run('curl', ['-s', '-m', '5', `${API}/metrics`]);
  }

  /** A command as an operator types it on this host; its output. */
  understudy(...args: string[]): Promise<string> {
    return this.host.run(program, args);
  }

  end(signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    return this.running.end(signal);
  }

  /** Decides every record of its journal again. */
  verify(): VerifyResult {
    const reader = new JournalReader(this.journal);
    try {
      return verify(reader);
    } finally {
      reader.close();
    }
  }

  /** Every advert that a router of it has discarded, as its journal tells. */
  discarded(router = 'gateway'): RouterDiscard[] {
    const reader = new JournalReader(this.journal);
    try {
      return [...reader.steps({ actor: `router/${router}` })]
        .map(({ event }) => event as unknown as RouterEvent)
        .filter((event) => event.type === 'advert.discarded');
    } finally {
      reader.close();
    }
  }

  /** Every change of state of a router with its reason, as notify scripts and the pipe are told. */
  reasons(router = 'gateway'): RouterNotice[] {
    const reader = new JournalReader(this.journal);
    try {
      return [...reader.steps({ actor: `router/${router}` })].flatMap(({ effects }) =>
        effects.filter(({ type }) => type === 'notify').map(({ params }) => params as RouterNotice),
      );
    } finally {
      reader.close();
    }
  }

  explain(actor: string, atUs?: number): Explanation {
    const reader = new JournalReader(this.journal);
    try {
      return explain(reader, actor, atUs);
    } finally {
      reader.close();
    }
  }
}

/** Until exactly one of the nodes is master of the router, and its host alone has the address. */
export const untilOneMaster = async (
  nodes: LabNode[],
  address: string,
  { router = 'gateway', timeoutMs }: { router?: string; timeoutMs?: number } = {},
): Promise<LabNode> => {
  let master: LabNode | null = null;
  await until(
    `one master of ${router} among ${nodes.map(({ name }) => name).join(', ')}`,
    async () => {
      const masters = nodes.filter((node) => node.isMaster(router));
      const holders = await Promise.all(nodes.map(({ host }) => host.holds(address)));
      master = masters[0] ?? null;
      return masters.length === 1 && nodes.every((node, index) => holders[index] === (node === master));
    },
    timeoutMs,
  );
  return master!;
};
