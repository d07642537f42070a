/** The cluster's command stream over real nats-servers: once each, in order, through restarts, losses and elections. */
import { jetstreamManager } from '@nats-io/jetstream';
import type { JetStreamManager } from '@nats-io/jetstream';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { StreamCommand } from '../machines/commandDesk.ts';
import { encodeJson } from '../src/bus/bus.ts';
import type { CommandServiceEvent } from '../src/bus/commandService.ts';
import { NatsBus } from '../src/bus/natsBus.ts';
import { bus as busSchema } from '../src/config/bus.ts';
import type { NatsConfig } from '../src/config/bus.ts';
import { NatsCluster, natsClient, NatsServer } from './natsHelpers.ts';
import type { NatsOptions } from './natsHelpers.ts';
import { within } from './nodeHelpers.ts';
import { has } from './packages.ts';

const STREAM = 'understudy-shop-command';
const SUBJECT = 'understudy.shop.command';
/** Elections among nats-servers take seconds, and more on a busy machine. */
const ELECTION_MS = 40_000;

const startNats = async (options?: NatsOptions): Promise<NatsServer> => {
  const server = await NatsServer.start(options);
  onTestFinished(() => server.end());
  return server;
};

const managerOf = async (...servers: string[]): Promise<JetStreamManager> => {
  const client = await natsClient(...servers);
  onTestFinished(() => client.close());
  return jetstreamManager(client, { checkAPI: false });
};

/** A node's bus that follows the commands, and what it was told. */
class Follower {
  readonly bus: NatsBus;
  readonly events: CommandServiceEvent[] = [];
  #wakers = new Set<() => void>();

  constructor(node: string, servers: string[], rest: Record<string, unknown> = {}) {
    const { nats } = busSchema.parse({ nats: { servers, ...rest } }) as { nats: NatsConfig };
    this.bus = new NatsBus({ cluster: 'shop', node, journalPath: '/nowhere', nats });
    onTestFinished(() => this.bus.close());
    this.bus.onEvent('command', (event) => {
      this.events.push(event as CommandServiceEvent);
      for (const wake of [...this.#wakers]) wake();
    });
    this.bus.onStatus(({ connected }) => {
      if (connected) void this.follow();
    });
  }

  /** From where it is, as a node does it at each connection. */
  async follow(): Promise<void> {
    const { stream, sequence } = this.position();
    await this.bus.call('command', 'follow', { stream, sequence });
  }

  position(): { stream: string | null; sequence: number } {
    const position = { stream: null as string | null, sequence: 0 };
    for (const event of this.events) {
      if (event.type === 'found') Object.assign(position, { stream: event.stream, sequence: event.from - 1 });
      if (event.type === 'command' || event.type === 'unreadable') position.sequence = event.sequence;
    }
    return position;
  }

  /** The first event from `from` on that is so. */
  async told(what: string, isIt: (event: CommandServiceEvent) => boolean, from = 0, ms?: number) {
    const found = new Promise<CommandServiceEvent>((done) => {
      const look = () => {
        const event = this.events.slice(from).find(isIt);
        if (!event) return;
        this.#wakers.delete(look);
        done(event);
      };
      this.#wakers.add(look);
      look();
    });
    return within(what, found, ms);
  }

  caughtUp = (from = 0, ms?: number) => this.told('the end of the stream', ({ type }) => type === 'caughtUp', from, ms);
  heard = (id: string, from = 0, ms?: number) =>
    this.told(`command ${id}`, (event) => event.type === 'command' && event.said.id === id, from, ms);
  lost = (from = 0, ms?: number) => this.told('a loss', ({ type }) => type === 'lost', from, ms);

  ids(): string[] {
    return this.events.flatMap((event) => (event.type === 'command' ? [event.said.id] : []));
  }

  publish(command: StreamCommand): Promise<unknown> {
    return this.bus.call('command', 'publish', command);
  }
}

const drain = (id: string, atUs = 1): StreamCommand => ({
  id,
  by: 'lb1',
  atUs,
  node: null,
  command: { type: 'server.drain', pool: 'web', server: 'web1' },
});

/** What a call is refused with. */
const refusalOf = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => 'done',
    (error: unknown) => (error as { code: string }).code,
  );

/** Until there is a leader again. Each attempt is the same command. */
const publishUntilDone = async (follower: Follower, command: StreamCommand): Promise<void> => {
  const end = Date.now() + ELECTION_MS;
  for (;;) {
    const refusal = await refusalOf(follower.publish(command));
    if (refusal === 'done') return;
    expect(Date.now(), `still ${String(refusal)}`).toBeLessThan(end);
  }
};

describe.skipIf(!has('nats-server'))('the command stream', () => {
  test('commands reach all in order', async () => {
    const nats = await startNats();
    const [first, second] = [new Follower('lb1', [nats.url]), new Follower('lb2', [nats.url])];
    await Promise.all([first.caughtUp(), second.caughtUp()]);
    const published = [];
    for (const [id, from] of [
      ['a', first],
      ['b', second],
      ['c', first],
    ] as const)
      published.push(await from.publish(drain(id)));
    expect(published).toEqual([{ sequence: 1 }, { sequence: 2 }, { sequence: 3 }]);
    for (const follower of [first, second]) {
      await follower.heard('c');
      expect(follower.ids()).toEqual(['a', 'b', 'c']);
    }
    const { config } = await (await managerOf(nats.url)).streams.info(STREAM);
    expect(config).toMatchObject({ deny_delete: true, deny_purge: true, max_msgs: 10_000, num_replicas: 1 });
  });

  test('who was away goes on after the last one that it heard, and is told when that is all', async () => {
    const nats = await startNats();
    const first = new Follower('lb1', [nats.url]);
    await first.caughtUp();
    await first.publish(drain('a'));
    await first.heard('a');
    const { stream } = first.position();
    for (const id of ['b', 'c']) await first.publish(drain(id));
    const late = new Follower('lb2', [nats.url]);
    late.events.push({ type: 'found', stream: stream!, from: 2 });
    await late.caughtUp();
    expect(late.events.slice(1)).toMatchObject([
      { type: 'found', from: 2 },
      { type: 'command', sequence: 2, said: { id: 'b' } },
      { type: 'command', sequence: 3, said: { id: 'c' } },
      { type: 'caughtUp' },
    ]);
  });

  test('a nats-server that ends and comes back costs nothing, and tells nothing twice', async () => {
    const nats = await startNats();
    const follower = new Follower('lb1', [nats.url]);
    await follower.caughtUp();
    await follower.publish(drain('a'));
    await follower.heard('a');
    await nats.stop('SIGKILL');
    expect(await refusalOf(follower.publish(drain('b')))).toMatch(/^NATS_(OFFLINE|UNREACHABLE|TIMEOUT)$/);
    const from = follower.events.length;
    await nats.again();
    await follower.caughtUp(from, ELECTION_MS);
    await follower.publish(drain('c'));
    await follower.heard('c');
    expect(follower.ids().filter((id) => id !== 'b')).toEqual(['a', 'c']);
  });

  test('a stream that was deleted is made anew, and begins at its first command', async () => {
    const nats = await startNats();
    const follower = new Follower('lb1', [nats.url]);
    await follower.caughtUp();
    for (const id of ['a', 'b']) await follower.publish(drain(id));
    await follower.heard('b');
    const before = follower.position();
    const from = follower.events.length;
    await (await managerOf(nats.url)).streams.delete(STREAM);
    await follower.caughtUp(from, ELECTION_MS);
    const found = follower.events.slice(from).find(({ type }) => type === 'found');
    expect(found).toMatchObject({ from: 1 });
    expect((found as { stream: string }).stream).not.toBe(before.stream);
    await follower.publish(drain('c'));
    expect(await follower.heard('c', from)).toMatchObject({ sequence: 1 });
  });

  test('what can’t be read is told by its place, and what comes after it is heard', async () => {
    const nats = await startNats();
    const follower = new Follower('lb1', [nats.url]);
    await follower.caughtUp();
    const client = await natsClient(nats.url);
    onTestFinished(() => client.close());
    client.publish(SUBJECT, 'rubbish');
    client.publish(SUBJECT, encodeJson({ ...drain('b'), id: 'a subject.*' }));
    client.publish(SUBJECT, encodeJson({ ...drain('c'), command: { type: 'server.explode' } }));
    await client.flush();
    await follower.publish(drain('d'));
    await follower.heard('d');
    const places = follower.events.flatMap((event) => (event.type === 'unreadable' ? [event.sequence] : []));
    expect(places).toEqual([1, 2, 3]);
  });

  test('a server without JetStream, and too few servers for the copies, are told', async () => {
    const plain = await startNats({ jetstream: false });
    const without = new Follower('lb1', [plain.url]);
    expect(await without.lost()).toMatchObject({ code: 'NATS_NO_JETSTREAM' });
    expect(await refusalOf(without.publish(drain('a')))).toBe('NATS_NO_JETSTREAM');
    const single = await startNats();
    const copies = new Follower('lb1', [single.url], { replicas: 3 });
    expect(await copies.lost()).toMatchObject({ code: 'NATS_STREAM_REFUSED' });
  });

  test('a user who may not make the stream is told so', async () => {
    const nats = await startNats({
      config: `authorization { users: [{ user: lb1, password: secret, permissions {
      publish: { deny: "$JS.API.STREAM.CREATE.>" } } }] }`,
    });
    const follower = new Follower('lb1', [nats.url], { user: 'lb1', password: 'secret' });
    expect(await follower.lost()).toMatchObject({ code: 'NATS_REFUSED' });
  });

  test('three servers: the loss of one costs nothing, of two it is told, and all goes on when they return', async () => {
    const cluster = await NatsCluster.start();
    onTestFinished(() => cluster.end());
    const followers = cluster.servers.map(({ url }, index) => new Follower(`lb${index + 1}`, [url], { replicas: 3 }));
    await Promise.all(followers.map((follower) => follower.caughtUp(0, ELECTION_MS)));
    const manager = await managerOf(...cluster.urls);
    const { config, created } = await manager.streams.info(STREAM);
    expect(config.num_replicas).toBe(3);
    const [first, second, third] = followers as [Follower, Follower, Follower];
    await first.publish(drain('a'));
    await Promise.all(followers.map((follower) => follower.heard('a')));

    const leaderOf = async () => (await manager.streams.info(STREAM)).cluster?.leader;
    const leader = await leaderOf();
    const index = cluster.servers.findIndex((_, place) => `n${place + 1}` === leader);
    expect(index).toBeGreaterThanOrEqual(0);
    await cluster.servers[index]!.stop('SIGKILL');
    const alive = followers.filter((_, place) => place !== index);
    await publishUntilDone(alive[0]!, drain('b'));
    for (const follower of alive) await follower.heard('b', 0, ELECTION_MS);

    const other = cluster.servers.findIndex((_, place) => place !== index);
    const froms = followers.map(({ events }) => events.length);
    await cluster.servers[other]!.stop('SIGKILL');
    const lastIndex = [0, 1, 2].find((place) => place !== index && place !== other)!;
    const last = followers[lastIndex]!;
    await last.lost(froms[lastIndex], ELECTION_MS);
    expect(await refusalOf(last.publish(drain('c')))).toMatch(/^NATS_(TIMEOUT|UNREACHABLE|NO_JETSTREAM)$/);

    await Promise.all([cluster.servers[index]!.again(), cluster.servers[other]!.again()]);
    await publishUntilDone(last, drain('d'));
    for (const follower of [first, second, third]) {
      await follower.heard('d', 0, ELECTION_MS);
      // What was refused may be there all the same, and what was published again twice.
      const ids = new Set(follower.ids());
      ids.delete('c');
      expect([...ids]).toEqual(['a', 'b', 'd']);
      // No server's end makes it another stream.
      expect(follower.position().stream).toBe(created);
    }
  }, 180_000);
});
