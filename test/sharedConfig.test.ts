/** What a cluster shares: three real nodes and a real nats-server; pushes, refusals, roll-outs that stop, and returns. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import { formatOutcome } from '../src/cli/config.ts';
import type { HistoryEntry } from '../src/cli/config.ts';
import { formatSharedConfig } from '../src/cli/statusConfig.ts';
import type { Outcome } from '../src/cluster/configRollout.ts';
import { decodedSteps, JournalReader } from '../src/journal/reader.ts';
import { NatsServer } from './natsHelpers.ts';
import { listening, RunningNode, startWeb, tempFolder, understudy, within, writeFile } from './nodeHelpers.ts';
import type { Ran } from './nodeHelpers.ts';
import { freePorts } from './ports.ts';

const NAMES = ['lb1', 'lb2', 'lb3'];

type Member = { name: string; api: number; port: number; file: string; node: RunningNode; journal: string };

class SharedCluster {
  readonly folder = tempFolder();
  nats!: NatsServer;
  web = '';
  members: Member[] = [];

  static async start(
    options: { routers?: boolean; startWait?: string; names?: string[] } = {},
  ): Promise<SharedCluster> {
    const cluster = new SharedCluster();
    cluster.nats = await NatsServer.start();
    onTestFinished(() => cluster.nats.end());
    cluster.web = (await startWeb('web1')).address;
    const names = options.names ?? NAMES;
    const ports = await freePorts(names.length * 2);
    for (const [index, name] of names.entries()) {
      const [api, port] = [ports[2 * index]!, ports[2 * index + 1]!];
      const file = writeFile(cluster.folder, `${name}.yaml`, cluster.ownFile(name, api, index, options));
      const journal = join(cluster.folder, `${name}.db`);
      cluster.members.push({ name, api, port, file, node: undefined as unknown as RunningNode, journal });
    }
    await Promise.all(cluster.members.map((member) => cluster.run(member)));
    if (names.length > 1) await Promise.all(cluster.members.map((member) => cluster.heard(member)));
    return cluster;
  }

  ownFile(name: string, api: number, index: number, options: { routers?: boolean; startWait?: string } = {}): string {
    const router = [
      'routers:',
      '  gw:',
      '    vrid: 7',
      '    transport: nats',
      `    source: 127.0.3.${index + 1}`,
      `    priority: ${250 - 50 * index}`,
      '    advertise: 1s',
      '    addresses: [127.0.3.100/8]',
    ];
    return [
      'cluster: shop',
      `node: ${name}`,
      'shared: true',
      `bus: { nats: { servers: ["${this.nats.url}"], startWait: ${options.startWait ?? '5s'} } }`,
      `journal: { path: ./${name}.db }`,
      `api: { listen: "127.0.0.1:${api}" }`,
      'workers: 1',
      ...(options.routers === true ? router : []),
      '',
    ].join('\n');
  }

  async run(member: Member): Promise<void> {
    member.node = await RunningNode.start(member.file, member.api, { PORT: String(member.port), NODE: member.name });
  }

  /** Until it has heard of all others that they take part. */
  heard({ node }: Member): Promise<StateView> {
    const others = this.members.length;
    return seen(
      'all nodes',
      node,
      ({ cluster }) =>
        cluster!.nodes.filter(({ state, configRevision }) => state === 'alive' && configRevision !== null).length ===
        others,
    );
  }

  /** A shared text with a frontend on each node's own port, whose answer says which text it is. */
  text(answer: string, more: string[] = []): string {
    return [
      'frontends:',
      '  shop:',
      '    mode: http',
      '    bind: ["127.0.0.1:${PORT}"]',
      '    rules:',
      `      - { response: { setHeader: { X-Text: ${answer} } } }`,
      '    use: web',
      '    drain: 1s',
      'backends:',
      '  web:',
      '    check: { type: tcp, interval: 100ms, rise: 1, fall: 2 }',
      '    servers:',
      `      - { name: web1, address: "${this.web}" }`,
      ...more,
      '',
    ].join('\n');
  }

  write(name: string, text: string): string {
    return writeFile(this.folder, name, text);
  }

  config(args: string[], by = this.members[0]!): Promise<Ran> {
    return understudy(['config', ...args, '--api', `http://127.0.0.1:${by.api}`]);
  }

  async post(
    what: 'push' | 'rollback' | 'resume',
    body: object,
    by = this.members[0]!,
  ): Promise<Outcome & { message: string }> {
    const response = await fetch(`http://127.0.0.1:${by.api}/api/config/${what}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${await by.node.token()}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    return (await response.json()) as Outcome & { message: string };
  }

  /** As `config push` does it. */
  push(text: string, by = this.members[0]!, more: object = {}): Promise<Outcome & { message: string }> {
    return this.post('push', { author: 'me@here', text, ...more }, by);
  }

  async history(by = this.members[0]!): Promise<HistoryEntry[]> {
    const headers = { authorization: `Bearer ${await by.node.token()}` };
    const response = await fetch(`http://127.0.0.1:${by.api}/api/config/history`, { headers });
    return ((await response.json()) as { revisions: HistoryEntry[] }).revisions;
  }

  async revisions(): Promise<(number | null)[]> {
    const states = await Promise.all(this.members.map(({ node }) => node.state()));
    return states.map(({ sharedConfig }) => sharedConfig?.revision ?? null);
  }
}

/** Looks again and again: what is waited for is no transition. */
const seen = (what: string, node: RunningNode, condition: (state: StateView) => boolean): Promise<StateView> => {
  const looked = (async () => {
    for (;;) {
      const state = await node.state();
      if (condition(state)) return state;
      await new Promise((again) => setTimeout(again, 50));
    }
  })();
  return within(what, looked);
};

const answerOf = async ({ port }: Member): Promise<string | null> => {
  const response = await fetch(`http://127.0.0.1:${port}/`);
  await response.text();
  return response.headers.get('x-text');
};

/** Notes of a journal about the shared configuration: type, revision, time. */
const notesOf = ({ journal }: Member): { type: string; revision: number; timeUs: number }[] => {
  const reader = new JournalReader(journal);
  const notes = [...reader.rows({ actor: 'node' })].filter(({ type }) => type.startsWith('config.'));
  const found = notes.map((row) => ({
    type: row.type,
    revision: decodedSteps(row)[0]!.event['revision'] as number,
    timeUs: row.time,
  }));
  reader.close();
  return found;
};

const appliedAt = (member: Member, revision: number): number =>
  notesOf(member).find((note) => note.type === 'config.applied' && note.revision === revision)!.timeUs;

const rolloutStates = ({ journal }: Member): string[] => {
  const reader = new JournalReader(journal);
  const states = [...reader.rows({ actor: 'rollout' })].map(({ state }) => state);
  reader.close();
  return states.filter((state, index) => state !== states[index - 1]);
};

/** What the leader saw before each step, and whom it told then. */
const picksOf = ({ journal }: Member): { seen: Record<string, number>; told: string }[] => {
  const reader = new JournalReader(journal);
  const picks = [...reader.rows({ actor: 'rollout', type: 'nodes.seen' })].flatMap((row) => {
    const { event, effects } = decodedSteps(row)[0]!;
    const told = effects.find(({ type }) => type === 'apply')?.params as { node: string } | undefined;
    const nodes = event['nodes'] as { node: string; masters: number }[];
    const masters = Object.fromEntries(nodes.map(({ node, masters: count }) => [node, count]));
    return told ? [{ seen: masters, told: told.node }] : [];
  });
  reader.close();
  return picks;
};

const statesIn = ({ nodes }: Outcome) => Object.fromEntries(nodes.map(({ node, state }) => [node, state]));

test('a push is applied on every node, backups first, and can be pulled, listed and rolled back', async () => {
  const cluster = await SharedCluster.start({ routers: true });
  const [lb1, lb2, lb3] = cluster.members as [Member, Member, Member];
  await seen('lb1 is master', lb1.node, ({ routers }) => routers[0]?.state === 'master');
  const text = cluster.text('one');
  const overlay = cluster.text('three').split('backends:')[0]!;
  const shared = cluster.write('shared.yaml', text);
  const over = cluster.write('lb3-over.yaml', overlay);
  const pushed = await cluster.config(['push', shared, '--message', 'the first', '--overlay', `lb3=${over}`]);
  expect(pushed).toEqual({
    status: 0,
    stdout: 'Revision 1 is applied.\nNODE  STATE\nlb1   applied\nlb2   applied\nlb3   applied\n',
    stderr: '',
  });
  expect(await cluster.revisions()).toEqual([1, 1, 1]);
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['one', 'one', 'three']);
  const picks = picksOf(lb1);
  expect(picks).toHaveLength(3);
  // A master is told when there is no backup left to be told.
  for (const { seen: masters, told } of picks) expect(masters[told]).toBe(Math.min(...Object.values(masters)));
  expect(picks[0]!.seen).toMatchObject({ lb1: 1 });
  const byTime = cluster.members.toSorted((a, b) => appliedAt(a, 1) - appliedAt(b, 1));
  expect(byTime.map(({ name }) => name)).toEqual(picks.map(({ told }) => told));
  expect(rolloutStates(lb1)).toEqual(['idle', 'checking', 'storing', 'applying', 'done']);

  // Through another node, and what isn't named of the overlays stays.
  expect(await cluster.push(cluster.text('two'), lb2)).toMatchObject({ outcome: 'done', revision: 2 });
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['two', 'two', 'three']);
  expect((await cluster.config(['pull', '--revision', '1'], lb3)).stdout).toBe(text);
  expect((await cluster.config(['pull', '--node', 'lb3'])).stdout).toBe(overlay);
  const none = await cluster.config(['pull', '--node', 'lb1']);
  expect(none).toMatchObject({
    status: 1,
    stderr: 'understudy: revision 2 has no overlay for lb1; it has some for lb3\n',
  });

  const back = await cluster.config(['rollback', '1'], lb3);
  expect(back.stdout).toMatch(/^Revision 3 is applied\.\n/);
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['one', 'one', 'three']);
  const history = (await cluster.config(['history'])).stdout.trim().split('\n');
  expect(history[0]).toMatch(/^REVISION +TIME +AUTHOR +OVERLAYS +STATE +MESSAGE$/);
  expect(history.slice(1).map((line) => line.split(/ {2,}/).toSpliced(1, 2).join(' | '))).toEqual([
    '3 | lb3 | applied | rollback to revision 1',
    '2 | lb3 | applied',
    '1 | lb3 | applied | the first',
  ]);
  const unknown = await cluster.post('rollback', { author: 'me@here', revision: 9 });
  expect(unknown.message).toBe('there is no revision 9; there are 3, 2, 1');
  expect((await fetch(`http://127.0.0.1:${lb1.api}/api/config`)).status).toBe(401);
  const explained = (await understudy(['explain', 'rollout', lb1.journal])).stdout;
  expect(explained).toMatch(/pushed a configuration \(“the first”\): here were lb1, lb2, lb3, away nobody\./);
  expect(explained).toMatch(/was told to apply it, as of those left lb1 is master\./);
  expect((await understudy(['verify', lb1.journal])).status).toBe(0);
});

test('what one node can’t run is stored nowhere', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1', 'lb2'] });
  const [lb1, lb2] = cluster.members as [Member, Member];
  await cluster.push(cluster.text('one'));
  // Its own file wants what the shared text is going to call otherwise.
  writeFileSync(lb2.file, `${readFileSync(lb2.file, 'utf8')}frontends: { shop: { use: web } }\n`);
  const renamed = cluster.text('two').replace('use: web', 'use: shop').replace('  web:', '  shop:');
  const outcome = await cluster.push(renamed);
  expect(outcome).toMatchObject({
    outcome: 'refused',
    nodes: [
      { node: 'lb1', state: 'right' },
      {
        node: 'lb2',
        state: 'problems',
        problems: [{ source: lb2.file, line: 8, column: 27, path: 'frontends.shop.use' }],
      },
    ],
  });
  const file = cluster.write('shared.yaml', renamed.replace('interval: 100ms', 'intervall: 100ms'));
  const refused = await cluster.config(['push', file], lb1);
  expect(refused.status).toBe(1);
  expect(refused.stdout.split('\n').slice(0, 4)).toEqual([
    'Nothing was stored: not every node can run it.',
    'NODE  STATE',
    'lb1   refused  1 problem',
    'lb2   refused  2 problems',
  ]);
  expect(refused.stdout).toContain(
    `lb1: ${file}:11:25 backends.shop.check.intervall: unknown key; did you mean interval?`,
  );
  expect(refused.stdout).toContain(`lb2: ${lb2.file}:8:27 frontends.shop.use: `);
  expect(await cluster.revisions()).toEqual([1, 1]);
  expect(await cluster.history()).toHaveLength(1);
  const [, , , , ...since] = rolloutStates(lb1);
  expect(since).toEqual(['done', 'checking', 'idle', 'checking', 'idle']);
});

test('it stops at the first node that can’t apply it, and goes on when that has been put right', async () => {
  const cluster = await SharedCluster.start();
  const [lb1, lb2, lb3] = cluster.members as [Member, Member, Member];
  await cluster.push(cluster.text('one'));
  // The second frontend's port is taken on lb2 alone.
  const blocker = createServer();
  const port = await listening(blocker);
  writeFileSync(lb2.file, `${readFileSync(lb2.file, 'utf8')}frontends: { other: { bind: ["127.0.0.1:${port}"] } }\n`);
  const more = ['  other:', '    mode: tcp', '    bind: ["127.0.0.1:0"]', '    use: web', 'backends:'];
  const stopped = await cluster.push(cluster.text('two').replace('backends:', more.join('\n')));
  const why = `frontend other can't listen on 127.0.0.1:${port}: another program listens there`;
  expect(stopped).toMatchObject({ outcome: 'stopped', revision: 2, message: why });
  expect(statesIn(stopped)).toEqual({ lb1: 'applied', lb2: 'failed', lb3: 'waiting' });
  expect(formatOutcome(stopped, new Map())).toBe(
    [
      'Revision 2 stopped at lb2. The nodes behind it run what they ran.',
      'NODE  STATE',
      'lb1   applied',
      `lb2   failed   ${why}`,
      'lb3   waiting',
    ].join('\n'),
  );
  expect(await cluster.revisions()).toEqual([2, 1, 1]);
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['two', 'one', 'one']);
  const told = `revision 2 stopped at lb2: ${why}`;
  for (const { node } of cluster.members) {
    const { node: own } = await seen('the stop is told', node, ({ node: it }) => it.problems.join().includes(told));
    expect(own.status).toBe('degraded');
  }
  expect((await cluster.history(lb3))[0]).toMatchObject({ revision: 2, rollout: { state: 'stopped', at: 'lb2', why } });
  const state = await seen('lb1 runs 2, lb3 runs 1', lb2.node, ({ cluster: it }) => {
    const [one, , three] = it!.nodes;
    return one!.configRevision === 2 && three!.configRevision === 1;
  });
  expect(formatSharedConfig(state)).toEqual([`Shared configuration: lb2 runs revision 1; ${told}; lb1 runs 2`]);

  // What isn't complete is not for a node that starts.
  await lb3.node.end();
  await cluster.run(lb3);
  expect((await lb3.node.state()).sharedConfig).toMatchObject({ revision: 1 });
  blocker.close();
  await once(blocker, 'close');
  await cluster.heard(lb2);
  const resumed = await cluster.post('resume', {}, lb2);
  expect(resumed).toMatchObject({ outcome: 'done', revision: 2 });
  expect(statesIn(resumed)).toEqual({ lb1: 'applied', lb2: 'applied', lb3: 'applied' });
  expect(await cluster.revisions()).toEqual([2, 2, 2]);
  expect(rolloutStates(lb1).slice(-2)).toEqual(['applying', 'stopped']);
});

test('a node that gets into trouble by it goes back by itself', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1', 'lb2'] });
  await cluster.push(cluster.text('one'));
  // A port that no other test is given meanwhile.
  const stopped = await cluster.push(cluster.text('two').replace(cluster.web, '127.0.0.1:1'));
  expect(stopped).toMatchObject({
    outcome: 'stopped',
    message: 'with it pool/web is exhausted; revision 1 runs here again',
  });
  expect(await cluster.revisions()).toEqual([1, 1]);
  await cluster.members[0]!.node.healthIs('web/web1', 'up');
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['one', 'one']);
});

test('of two pushes at once one wins, and the other is told by whom', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1', 'lb2'] });
  const [lb1, lb2] = cluster.members as [Member, Member];
  const both = await Promise.all([cluster.push(cluster.text('a'), lb1), cluster.push(cluster.text('b'), lb2)]);
  const winner = both.findIndex(({ outcome }) => outcome === 'done');
  expect(both[1 - winner]!.outcome).not.toBe('done');
  expect(both[1 - winner]!.message).toMatch(
    /^me@here has pushed revision 1 meanwhile, through lb\d; nothing was stored|^lb\d is rolling out revision 1; wait for its end/,
  );
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(winner === 0 ? ['a', 'a'] : ['b', 'b']);
  expect(await cluster.history()).toHaveLength(1);
});

test('a node that was away takes what it missed before it takes traffic, and starts without NATS with what it last ran', async () => {
  const cluster = await SharedCluster.start();
  const [lb1, , lb3] = cluster.members as [Member, Member, Member];
  await cluster.push(cluster.text('one'));
  await lb3.node.end();
  const isGone = ({ name, state }: { name: string; state: string }) => name === 'lb3' && state === 'gone';
  await seen('lb3 has gone', lb1.node, ({ cluster: it }) => it!.nodes.some(isGone));
  const strict = await cluster.push(cluster.text('two'), lb1, { requireAll: true });
  expect(strict).toMatchObject({ outcome: 'refused', nodes: [{}, {}, { node: 'lb3', state: 'away' }] });
  expect(formatOutcome(strict, new Map())).toMatch(/^Nothing was stored: not every node is here\.\n/);
  const without = await cluster.push(cluster.text('two'));
  expect(without.outcome).toBe('done');
  expect(statesIn(without)).toEqual({ lb1: 'applied', lb2: 'applied', lb3: 'away' });
  expect((await cluster.history())[0]!.rollout!.nodes).toEqual({ lb1: 'applied', lb2: 'applied', lb3: 'away' });

  await cluster.run(lb3);
  // In this life it never ran revision 1.
  expect(notesOf(lb3).at(-1)).toMatchObject({ type: 'config.started', revision: 2 });
  expect(await answerOf(lb3)).toBe('two');

  for (const { node } of cluster.members) await node.end();
  await cluster.nats.stop();
  await cluster.run(lb3);
  expect((await lb3.node.state()).sharedConfig).toMatchObject({ revision: 2 });
  expect(await answerOf(lb3)).toBe('two');
  const log = lb3.node.log.map(({ msg }) => msg).join('\n');
  expect(log).toMatch(/can't be reached.*: this node starts with revision 2, which it last ran/);
  // A node that has never run anything of the cluster can't.
  const [api] = await freePorts(1);
  const file = cluster.write('lb4.yaml', cluster.ownFile('lb4', api!, 0, { startWait: '1s' }));
  const fresh = await understudy(['run', file]);
  expect(fresh.status).toBe(3);
  expect(fresh.stderr).toMatch(
    /^understudy: what cluster shop shares is not known: NATS at .* can't be reached.* A node's first start needs NATS/,
  );
  expect(existsSync(join(cluster.folder, 'lb4.db'))).toBe(false);
});

test('a node that was only cut off takes what it missed while it runs', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1', 'lb2'] });
  const [lb1, lb2] = cluster.members as [Member, Member];
  await cluster.push(cluster.text('one'));
  lb2.node.child.kill('SIGSTOP');
  const isGone = ({ name, state }: { name: string; state: string }) => name === 'lb2' && state === 'gone';
  await seen('lb2 has gone', lb1.node, ({ cluster: it }) => it!.nodes.some(isGone));
  expect(statesIn(await cluster.push(cluster.text('two')))).toEqual({ lb1: 'applied', lb2: 'away' });
  lb2.node.child.kill('SIGCONT');
  await seen('lb2 takes it', lb2.node, ({ sharedConfig }) => sharedConfig!.revision === 2);
  expect(await answerOf(lb2)).toBe('two');
  expect(notesOf(lb2).map(({ type, revision }) => `${type} ${revision}`)).toEqual([
    'config.started 0',
    'config.applied 1',
    'config.applied 2',
  ]);
});

test('a leader that dies in the middle leaves word, and another goes on', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1', 'lb2'] });
  const [lb1, lb2] = cluster.members as [Member, Member];
  await cluster.push(cluster.text('one'));
  // lb2 waits for its first checks, which nobody answers: there the roll-out is when its leader is killed.
  const silent = await listening(createServer(() => {}));
  const slow = cluster.text('two').replace('type: tcp, interval: 100ms', 'type: http, timeout: 9s, interval: 9s');
  const push = cluster.push(slow.replace(cluster.web, `127.0.0.1:${silent}`)).catch((error: unknown) => error);
  await seen(
    'it is stored that it is under way',
    lb2.node,
    ({ sharedConfig }) => sharedConfig!.rollout!.state === 'applying',
  );
  lb1.node.child.kill('SIGKILL');
  expect(await push).toBeInstanceOf(Error);
  const told = /revision 2 is half applied: lb1, which led it, has gone; `config push --resume` goes on/;
  await seen('the leader is missed', lb2.node, ({ node }) => told.test(node.problems.join()));
  const after = await cluster.push(cluster.text('three'), lb2);
  expect(after).toMatchObject({ outcome: 'done', revision: 3 });
  expect(statesIn(after)).toEqual({ lb1: 'away', lb2: 'applied' });
  await cluster.run(lb1);
  expect(await cluster.revisions()).toEqual([3, 3]);
  expect(await Promise.all(cluster.members.map(answerOf))).toEqual(['three', 'three']);
});

test('a reload reads the node’s own file over the revision that runs', async () => {
  const cluster = await SharedCluster.start({ names: ['lb1'] });
  const [lb1] = cluster.members as [Member];
  const own = readFileSync(lb1.file, 'utf8');
  await cluster.push(cluster.text('one'));
  writeFileSync(lb1.file, `${own}frontends: { shop: { rules: [{ response: { setHeader: { X-Text: own } } }] } }\n`);
  lb1.node.child.kill('SIGHUP');
  await lb1.node.logged(/configuration reloaded/);
  expect(await answerOf(lb1)).toBe('own');
  writeFileSync(lb1.file, own.replace('shared: true\n', ''));
  lb1.node.child.kill('SIGHUP');
  const refusal = await lb1.node.logged(/nothing was changed/);
  expect(refusal.msg).toMatch(/`shared` is gone from .*: that takes effect at a start only/);
});
