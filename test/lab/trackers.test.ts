/** What makes a router give way and come back: trackers, preemption and its delays; and who is told of it. */
import { chmodSync, copyFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import { changesOf, divergencesOf, gateway, startNodes, toldBy, untilMaster, VIP } from './observed.ts';

const LOOKS = { interval: '100ms', rise: 1, fall: 2 };

/** What is tracked, and how it is broken and mended. */
type Tracked = {
  track: object;
  /** Beside the routers, in the configuration. */
  rest?: object;
  break(): unknown;
  mend(): unknown;
};

const pool = async (lab: Lab): Promise<Tracked> => {
  const web = await lab.host('web', { addresses: { eth0: ['10.9.0.31/24'] } });
  let nginx: LabProcess = await startNginx(web, 'hello');
  const check = { type: 'http', path: '/', interval: '100ms', timeout: '500ms', rise: 1, fall: 2 };
  return {
    track: { pool: 'web' },
    rest: { backends: { web: { check, servers: [{ name: 'web1', address: '10.9.0.31:80' }] } } },
    break: () => nginx.end('SIGTERM'),
    mend: async () => (nginx = await startNginx(web, 'hello')),
  };
};

const link = (_: Lab, host: Host): Promise<Tracked> =>
  Promise.resolve({
    track: { interface: 'eth1' },
    break: () => host.unplug('eth1'),
    mend: () => host.heal('eth1'),
  });

const script = (lab: Lab): Promise<Tracked> => {
  const [file, bad, who] = ['check.sh', 'bad', 'who'].map((name) => join(lab.folder, name)) as [string, string, string];
  chmodSync(lab.folder, 0o755);
  writeFileSync(who, '');
  chmodSync(who, 0o666);
  writeFileSync(file, `#!/bin/sh\nid -un >> ${who}\ntest ! -e ${bad}\n`, { mode: 0o755 });
  return Promise.resolve({
    track: { script: [file], ...LOOKS },
    break: () => {
      expect(readFileSync(who, 'utf8')).toMatch(/^((nobody|keepalived_script)\n)+$/);
      writeFileSync(bad, '');
    },
    mend: () => rmSync(bad),
  });
};

const program = async (lab: Lab, host: Host): Promise<Tracked> => {
  // A name that nothing else on this machine has, 15 letters at most.
  const name = `us${process.pid}d`;
  const file = join(lab.folder, name);
  copyFileSync('/bin/sleep', file);
  chmodSync(file, 0o755);
  let running = await host.spawn(file, ['1000']);
  return {
    track: { process: name, ...LOOKS },
    break: () => running.end('SIGKILL'),
    mend: async () => (running = await host.spawn(file, ['1000'])),
  };
};

const file = (lab: Lab): Promise<Tracked> => {
  const path = join(lab.folder, 'number');
  writeFileSync(path, '0\n');
  return Promise.resolve({
    track: { file: path, ...LOOKS },
    break: () => writeFileSync(path, '-60\n'),
    mend: () => writeFileSync(path, '0\n'),
  });
};

const hostsFor = async (lab: Lab): Promise<[Host, Host]> => {
  const host = (name: string, number: number) =>
    lab.host(name, {
      addresses: { eth0: [`10.9.0.${number}/24`], eth1: [`10.10.0.${number}/24`] },
      segments: { eth1: 'other' },
    });
  return [await host('lb1', 11), await host('lb2', 12)];
};

describe.skipIf(!isRoot)('trackers', () => {
  test.concurrent.for([
    { name: 'a pool, weight −60', make: pool, effect: { weight: -60 }, priority: 150 },
    { name: 'a pool without weight', make: pool, effect: {}, priority: 150 },
    { name: 'an interface, weight −60', make: link, effect: { weight: -60 }, priority: 150 },
    { name: 'an interface without weight', make: link, effect: {}, priority: 150 },
    { name: 'a script, weight −60', make: script, effect: { weight: -60 }, priority: 150 },
    { name: 'a process, weight 60', make: program, effect: { weight: 60 }, priority: 90 },
    { name: 'a process without weight', make: program, effect: {}, priority: 150 },
    { name: 'a number in a file', make: file, effect: {}, priority: 150 },
  ])('$name moves the address and moves it back', async ({ make, effect, priority }, context) => {
    const lab = await labForTest(context.onTestFinished);
    const [a, b] = await hostsFor(lab);
    const tracked = await make(lab, a);
    const track = [{ ...tracked.track, ...effect }];
    const [one, two] = (await startNodes([a, gateway(priority, { track }, tracked.rest)], [b, gateway(100)])) as [
      LabNode,
      LabNode,
    ];
    await untilMaster(one, [two]);
    const brokenAt = nowMs();
    await tracked.break();
    await untilMaster(two, [one]);
    const isFault = !('weight' in effect) && !('file' in track[0]!);
    expect(changesOf(one.running).at(-1)!.state).toBe(isFault ? 'fault' : 'backup');
    await tracked.mend();
    await untilMaster(one, [two]);
    await one.end();
    await two.end();
    const [gave, ...later] = toldBy(one).filter(({ atMs }) => atMs > brokenAt);
    expect(gave).toMatchObject(
      isFault
        ? { state: 'FAULT', reason: { code: 'fault' } }
        : { state: 'BACKUP', reason: { code: 'higherPriority', priority: 90, peerPriority: 100 } },
    );
    expect(gave!.reason.detail ?? '').toMatch(isFault ? /./ : /^$/);
    const took = later.find(({ state }) => state === 'MASTER');
    expect(took!.reason).toMatchObject({ code: 'preemption', priority: 150, peer: '10.9.0.12', peerPriority: 100 });
    expect(divergencesOf(one, two)).toEqual([]);
  });
});

describe.skipIf(!isRoot)('preemption', () => {
  test.concurrent('preempt: false leaves a lower master alone for as long as it lives', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const [one, two] = (await startNodes(
      [a, gateway(200, { preempt: false })],
      [b, gateway(100, { preempt: false })],
    )) as [LabNode, LabNode];
    await until('a master', async () => one.isMaster() || two.isMaster());
    if (one.isMaster()) await one.end();
    await untilMaster(two, one.running.exit ? [] : [one]);
    if (one.running.exit) await one.run();
    await until('an advert', async () => (await one.metrics()).length > 0);
    const startedAt = nowMs();
    await until('ten master-down times', () => Promise.resolve(nowMs() - startedAt > 10 * 360));
    expect([one.isMaster(), two.isMaster()]).toEqual([false, true]);
    await two.end();
    await untilMaster(one, []);
    await one.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('the preempt delay is waited, but not where the master is gone', async (context) => {
    const delayMs = 2_000;
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const [two] = (await startNodes([b, gateway(100)])) as [LabNode];
    await untilMaster(two, []);
    const [one] = (await startNodes([a, gateway(200, { preemptDelay: `${delayMs}ms` })])) as [LabNode];
    await untilMaster(one, [two]);
    const [, listening, master] = changesOf(one.running) as { atMs: number; state: string }[];
    expect([listening!.state, master!.state]).toEqual(['backup', 'master']);
    const tookMs = master!.atMs - listening!.atMs;
    console.log(`a preempt delay of ${delayMs} ms: master after ${tookMs} ms`);
    expect(tookMs).toBeGreaterThan(delayMs);
    // A master that dies is not left alone.
    await one.end();
    await untilMaster(two, []);
    await one.run();
    await one.running.waitFor(/is running/);
    const after = one.running.lines.length;
    await two.end('SIGKILL');
    await one.untilState('gateway', 'master', { after });
    await one.end();
    // Not by preemption, as after the delay.
    const took = toldBy(one).findLast(({ state }) => state === 'MASTER');
    expect(took!.reason.code).toMatch(/^(priorityZero|masterDownExpired)$/);
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('the start delay is waited before it takes part', async (context) => {
    const [a] = await hostsFor(await labForTest(context.onTestFinished));
    const [node] = (await startNodes([a, gateway(200, { startDelay: '1500ms' })])) as [LabNode];
    await untilMaster(node, []);
    const [initialize, backup] = changesOf(node.running) as { atMs: number; state: string }[];
    expect([initialize!.state, backup!.state]).toEqual(['initialize', 'backup']);
    expect(backup!.atMs - initialize!.atMs).toBeGreaterThanOrEqual(1_490);
    await node.end();
    expect(divergencesOf(node)).toEqual([]);
  });
});

describe.skipIf(!isRoot)('who is told', () => {
  test.concurrent('scripts and the pipe hear every state once, in order, with the reason', async (context) => {
    const lab = await labForTest(context.onTestFinished);
    const [a, b] = await hostsFor(lab);
    chmodSync(lab.folder, 0o755);
    const told = join(lab.folder, 'told');
    writeFileSync(told, '');
    chmodSync(told, 0o666);
    const command = join(lab.folder, 'notify.sh');
    writeFileSync(command, `#!/bin/sh\necho "$(id -un)|$*|$UNDERSTUDY_REASON" >> ${told}\n`, { mode: 0o755 });
    const pipe = join(lab.folder, 'pipe');
    const [two] = (await startNodes([b, gateway(100, {}, { notifyPipe: { path: `${pipe}2`, format: 'json' } })])) as [
      LabNode,
    ];
    const json = await b.spawn('cat', [`${pipe}2`]);
    await untilMaster(two, []);
    const notify = { command: [command], fault: [command, 'only', 'fault'] };
    const [one] = (await startNodes([a, gateway(150, { notify }, { notifyPipe: { path: pipe } })])) as [LabNode];
    const plain = await a.spawn('cat', [pipe]);
    await untilMaster(one, [two]);
    await a.unplug('eth0');
    await one.untilState('gateway', 'fault');
    await untilMaster(two, [one]);
    await a.heal('eth0');
    await untilMaster(one, [two]);
    await one.end();
    await untilMaster(two, []);
    await two.end();
    const states = ['BACKUP', 'MASTER', 'FAULT', 'BACKUP', 'MASTER', 'STOP'];
    await plain.exited;
    expect(plain.lines.map(({ text }) => text)).toEqual(states.map((state) => `INSTANCE "gateway" ${state} 150`));
    const lines = readFileSync(told, 'utf8').trim().split('\n');
    const general = lines.filter((line) => !line.includes('|only fault|')).map((line) => line.split('|'));
    expect(general.map(([, words]) => words)).toEqual(states.map((state) => `INSTANCE gateway ${state} 150`));
    expect(new Set(general.map(([user]) => user)).size).toBe(1);
    expect(general[0]![0]).toMatch(/^(nobody|keepalived_script)$/);
    expect(lines.filter((line) => line.includes('|only fault|'))).toHaveLength(1);
    const reasons = general.map(([, , reason]) => reason);
    expect(reasons).toEqual([
      'the node started',
      expect.stringContaining('10.9.0.12'),
      expect.stringContaining('eth0'),
      expect.stringMatching(/over/),
      expect.stringContaining('10.9.0.12'),
      'the node leaves',
    ]);
    await json.exited;
    const objects = json.lines.map(({ text }) => JSON.parse(text) as Record<string, unknown>);
    expect(objects.map(({ state }) => state)).toEqual([
      'BACKUP',
      'MASTER',
      'BACKUP',
      'MASTER',
      'BACKUP',
      'MASTER',
      'STOP',
    ]);
    for (const each of objects) expect(each).toMatchObject({ kind: 'INSTANCE', name: 'gateway', priority: 100 });
    expect(objects[2]).toMatchObject({ evidence: { code: 'higherPriority', peer: '10.9.0.11', peerPriority: 150 } });
    expect(objects[3]!['reason']).toEqual(expect.stringContaining('10.9.0.11'));
    expect([existsSync(pipe), existsSync(`${pipe}2`)]).toEqual([false, false]);
    expect(await a.holds(VIP)).toBe(false);
    expect(divergencesOf(one, two)).toEqual([]);
  });
});
