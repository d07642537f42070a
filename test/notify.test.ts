/** Notify scripts and the notify pipe, with real scripts and real FIFOs. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, onTestFinished, test } from 'vitest';
import { findUser } from '../src/net/users.ts';
import { MOST_WAITING, Notifier } from '../src/vrrp/notify.ts';
import type { NotifyEvent, NotifyScripts, NotifyState } from '../src/vrrp/notify.ts';
import { MOST_LINES, openNotifyPipe } from '../src/vrrp/notifyPipe.ts';
import type { NotifyPipe, NotifyPipeOptions } from '../src/vrrp/notifyPipe.ts';
import { killAtEnd, tempFolder, within, writeFile } from './nodeHelpers.ts';
import { isRoot } from './packages.ts';

const told = (o: Partial<NotifyState> = {}): NotifyState => ({
  kind: 'INSTANCE',
  name: 'gateway',
  state: 'MASTER',
  priority: 150,
  reason: 'no advert came for 3.6 s',
  evidence: {},
  ...o,
});

const scripts = (o: Partial<NotifyScripts>): NotifyScripts => ({
  command: [],
  master: [],
  backup: [],
  fault: [],
  stop: [],
  timeoutMs: 5000,
  // Nobody may not write into the test's folder.
  user: isRoot ? 'root' : null,
  ...o,
});

const startNotifier = (
  scriptsOf: (kind: string, name: string) => NotifyScripts | null,
  pipe: NotifyPipe | null = null,
) => {
  const events: NotifyEvent[] = [];
  const notifier = new Notifier({ scriptsOf, pipe, report: (event) => events.push(event) });
  onTestFinished(() => notifier.stop());
  return { notifier, events, settled: () => within('all notifications', notifier.settled()) };
};

const isRunning = (pid: number): boolean => {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

const until = (what: string, holds: () => boolean): Promise<void> =>
  within(
    what,
    (async () => {
      while (!holds()) await new Promise((done) => setImmediate(done));
    })(),
  );

const linesOf = (file: string): string[] => readFileSync(file, 'utf8').split('\n').slice(0, -1);

describe('scripts', () => {
  /** Writes its name and its arguments. */
  const talker = (folder: string): string => {
    const file = writeFile(folder, 'talker.sh', `#!/bin/sh\necho "$@" >> ${folder}/said\n`);
    chmodSync(file, 0o755);
    return file;
  };

  test("keepalived's arguments, and its order: the state's own script first", async () => {
    const folder = tempFolder();
    const file = talker(folder);
    const { notifier, events, settled } = startNotifier(() =>
      scripts({
        command: [file, 'all', 'a b'],
        master: [file, 'to master'],
        backup: [file, 'to backup'],
        fault: [file, 'to fault'],
        stop: [file, 'to stop'],
      }),
    );
    for (const state of ['BACKUP', 'MASTER', 'FAULT', 'STOP'] as const) notifier.tell(told({ state }));
    await settled();
    expect(linesOf(join(folder, 'said'))).toEqual([
      'to backup',
      'all a b INSTANCE gateway BACKUP 150',
      'to master',
      'all a b INSTANCE gateway MASTER 150',
      'to fault',
      'all a b INSTANCE gateway FAULT 150',
      'to stop',
      'all a b INSTANCE gateway STOP 150',
    ]);
    expect(events).toHaveLength(8);
    expect(events[1]).toEqual({
      type: 'notify.done',
      kind: 'INSTANCE',
      subject: 'gateway',
      state: 'BACKUP',
      command: `${file} all a b INSTANCE gateway BACKUP 150`,
      code: 'PROCOK',
      message: '',
      durationMs: expect.any(Number),
    });
  });

  test('the priority of a group is 0, as keepalived has it', async () => {
    const folder = tempFolder();
    const file = talker(folder);
    const { notifier, settled } = startNotifier((kind) => (kind === 'GROUP' ? scripts({ command: [file] }) : null));
    notifier.tell(told({ kind: 'GROUP', name: 'VG 1', priority: 99 }));
    notifier.tell(told({ name: 'without scripts' }));
    await settled();
    expect(linesOf(join(folder, 'said'))).toEqual(['GROUP VG 1 MASTER 0']);
  });

  test('reason and evidence are in the environment, and nothing of ours', async () => {
    process.env['UNDERSTUDY_TEST_SECRET'] = 'x';
    onTestFinished(() => {
      delete process.env['UNDERSTUDY_TEST_SECRET'];
    });
    const folder = tempFolder();
    const { notifier, settled } = startNotifier(() => scripts({ master: ['sh', '-c', `env > ${folder}/env`] }));
    const evidence = { lastAdvertUs: 12, peer: '10.9.0.2', preempt: true, deadline: null };
    notifier.tell(told({ reason: 'it says "no"', evidence }));
    await settled();
    const env = Object.fromEntries(linesOf(join(folder, 'env')).map((line) => line.split(/=(.*)/s).slice(0, 2)));
    expect(env).toMatchObject({
      UNDERSTUDY_KIND: 'INSTANCE',
      UNDERSTUDY_NAME: 'gateway',
      UNDERSTUDY_STATE: 'MASTER',
      UNDERSTUDY_PRIORITY: '150',
      UNDERSTUDY_REASON: 'it says "no"',
    });
    expect(JSON.parse(env['UNDERSTUDY_EVIDENCE'] as string)).toEqual(evidence);
    expect(env).not.toHaveProperty('UNDERSTUDY_TEST_SECRET');
  });

  test('a hundred quick changes and a slow script: one at a time, in order, the newest delivered, drops reported', async () => {
    const folder = tempFolder();
    const file = join(folder, 'said');
    const slow = `echo start "$2" "$UNDERSTUDY_REASON" >> ${file}; sleep 0.05; echo end "$2" "$UNDERSTUDY_REASON" >> ${file}`;
    const { notifier, events, settled } = startNotifier(() => scripts({ command: ['sh', '-c', slow, 'slow'] }));
    const names = ['gateway', 'inside'];
    for (let n = 0; n < 100; n++) {
      for (const name of names) {
        notifier.tell(told({ name, state: n % 2 ? 'MASTER' : 'BACKUP', reason: String(n), priority: n }));
      }
      await new Promise((done) => setImmediate(done));
    }
    await settled();
    for (const name of names) {
      const own = linesOf(file)
        .map((line) => line.split(' '))
        .filter((words) => words[1] === name);
      const run = own.filter(([word]) => word === 'start').map((words) => Number(words[2]));
      // Never two at once: each start is followed by its own end.
      expect(own).toEqual(
        run.flatMap((n) => [
          ['start', name, `${n}`],
          ['end', name, `${n}`],
        ]),
      );
      expect(run).toEqual([...run].sort((a, b) => a - b));
      expect(run.at(-1)).toBe(99);
      const dropped = events
        .filter((event) => event.type === 'notify.dropped' && event.subject === name)
        .map((event) => Number(event.command.split(' ').at(-1)));
      expect([...run, ...dropped].sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, n) => n));
      expect(dropped.length).toBeGreaterThan(0);
      expect(run.length).toBeGreaterThanOrEqual(1 + MOST_WAITING);
    }
    expect(events.find((event) => event.type === 'notify.dropped')).toMatchObject({ code: 'QUEUEFULL' });
  });

  test('one that hangs is killed with all that it started, and the next state is delivered', async () => {
    const folder = tempFolder();
    const hang = `sleep 600 & echo $$ $! >> ${folder}/pids; wait`;
    const { notifier, events, settled } = startNotifier(() =>
      scripts({ master: ['sh', '-c', hang], backup: ['true'], timeoutMs: 300 }),
    );
    notifier.tell(told());
    notifier.tell(told({ state: 'BACKUP' }));
    await settled();
    expect(events).toMatchObject([
      { type: 'notify.failed', state: 'MASTER', code: 'PROCTOUT', message: 'sh did not end within 300 ms' },
      { type: 'notify.done', state: 'BACKUP', code: 'PROCOK' },
    ]);
    expect(events[0]!.durationMs).toBeGreaterThanOrEqual(300);
    const pids = readFileSync(join(folder, 'pids'), 'utf8').trim().split(' ').map(Number);
    expect(pids).toHaveLength(2);
    await until('the end of the group', () => !pids.some(isRunning));
  });

  test("one that fails keeps nothing up: neither the state's other script nor the next state", async () => {
    const { notifier, events, settled } = startNotifier(() =>
      scripts({ command: ['true'], master: ['/nowhere/notify'], backup: ['sh', '-c', 'exit 7'] }),
    );
    notifier.tell(told());
    notifier.tell(told({ state: 'BACKUP' }));
    await settled();
    expect(events.map(({ type, state, code }) => [type, state, code])).toEqual([
      ['notify.failed', 'MASTER', 'PROCERR'],
      ['notify.done', 'MASTER', 'PROCOK'],
      ['notify.failed', 'BACKUP', 'PROCERR'],
      ['notify.done', 'BACKUP', 'PROCOK'],
    ]);
  });

  test.skipIf(!isRoot)('what others could change is not run as root', async () => {
    const folder = tempFolder();
    const file = talker(folder);
    chmodSync(file, 0o777);
    const { notifier, events, settled } = startNotifier(() => scripts({ command: [file], user: 'root' }));
    notifier.tell(told());
    await settled();
    expect(events).toMatchObject([{ type: 'notify.failed', code: 'PROCUNSAFE' }]);
    expect(existsSync(join(folder, 'said'))).toBe(false);
  });

  test('nothing is run within the change of state, and many routers at once are each delivered', async () => {
    const names = Array.from({ length: 40 }, (_, n) => `router${n}`);
    const { notifier, events, settled } = startNotifier(() => scripts({ command: ['true'] }));
    for (const name of names) notifier.tell(told({ name }));
    expect(spawnSync('pgrep', ['-P', String(process.pid)], { encoding: 'utf8' })).toMatchObject({
      status: 1,
      stdout: '',
    });
    await settled();
    expect(events.map(({ type, subject }) => [type, subject]).sort()).toEqual(
      names.map((name) => ['notify.done', name]).sort(),
    );
  });

  test('stopped: what runs ends, and what was not delivered is reported', async () => {
    const folder = tempFolder();
    const { notifier, events, settled } = startNotifier(() =>
      scripts({ command: ['sh', '-c', `echo $$ > ${folder}/pid; exec sleep 600`] }),
    );
    notifier.tell(told());
    notifier.tell(told({ state: 'STOP' }));
    await until('the start', () => existsSync(join(folder, 'pid')) && linesOf(join(folder, 'pid')).length === 1);
    notifier.stop();
    await settled();
    expect(events).toMatchObject([
      { type: 'notify.dropped', state: 'MASTER', code: 'STOPPED' },
      { type: 'notify.dropped', state: 'STOP', code: 'STOPPED' },
    ]);
    const pid = Number(readFileSync(join(folder, 'pid'), 'utf8'));
    await until('its end', () => !isRunning(pid));
    expect(() => notifier.tell(told())).toThrow(/stopped notifier/);
  });
});

describe('pipe', () => {
  const openPipe = (o: Partial<NotifyPipeOptions> = {}) => {
    const path = o.path ?? join(tempFolder(), 'notify');
    const events: NotifyEvent[] = [];
    const opened = openNotifyPipe({
      path,
      format: 'keepalived',
      user: null,
      report: (event) => events.push(event),
      ...o,
    });
    if ('problem' in opened) throw new Error(opened.problem);
    onTestFinished(() => opened.pipe.close());
    return { path, pipe: opened.pipe, events };
  };

  /** A reader as a user would have it; goes with all lines up to and with the one that ends so. */
  const readUntil = (path: string, end: string): Promise<string[]> => {
    const reader = spawn('cat', [path], { stdio: ['ignore', 'pipe', 'inherit'] });
    killAtEnd(reader);
    const lines: string[] = [];
    return within(
      end,
      new Promise((done) => {
        createInterface(reader.stdout).on('line', (line) => {
          lines.push(line);
          if (!line.endsWith(end)) return;
          reader.once('exit', () => done(lines));
          reader.kill('SIGKILL');
        });
      }),
    );
  };

  test("keepalived's lines, for a reader that comes late", async () => {
    const { path, pipe } = openPipe();
    pipe.write(told({ state: 'BACKUP' }));
    pipe.write(told());
    pipe.write(told({ kind: 'GROUP', name: 'VG_1', priority: 7 }));
    expect(pipe.isDrained).toBe(true);
    expect(await readUntil(path, ' 0')).toEqual([
      'INSTANCE "gateway" BACKUP 150',
      'INSTANCE "gateway" MASTER 150',
      'GROUP "VG_1" MASTER 0',
    ]);
    // It has gone; the next one finds what is written meanwhile.
    pipe.write(told({ state: 'STOP' }));
    expect(await readUntil(path, '150')).toEqual(['INSTANCE "gateway" STOP 150']);
  });

  test('JSON has time, reason and evidence', async () => {
    const { path, pipe } = openPipe({ format: 'json' });
    const before = Date.now();
    const evidence = { peer: '10.9.0.2', lateMs: 0.2 };
    pipe.write(told({ reason: 'two\nlines', evidence }));
    const [line] = await readUntil(path, '}');
    const { time, ...rest } = JSON.parse(line!) as NotifyState & { time: string };
    expect(rest).toEqual(told({ reason: 'two\nlines', evidence }));
    expect(Date.parse(time)).toBeGreaterThanOrEqual(before);
  });

  test('full, then drained: in order, drops reported, the newest of each router kept', async () => {
    const { path, pipe, events } = openPipe();
    pipe.write(told({ name: 'quiet', state: 'BACKUP', priority: 1 }));
    // 64 KiB are some 2300 lines.
    let filled = 0;
    while (pipe.isDrained) pipe.write(told({ priority: 1000 + filled++ }));
    // Waits in our queue, is the only one of its router, and will be the oldest there.
    pipe.write(told({ name: 'quiet', state: 'FAULT', priority: 2 }));
    for (let n = 0; n < 2 * MOST_LINES; n++) pipe.write(told({ priority: 10_000 + n }));
    expect(events.length).toBeGreaterThan(MOST_LINES);
    expect(new Set(events.map(({ type, code, command }) => `${type} ${code} ${command}`))).toEqual(
      new Set([`notify.dropped PIPEFULL ${path}`]),
    );
    const { notifier, settled } = startNotifier(() => null, pipe);
    const waiting = settled();
    notifier.tell(told({ priority: 99_999 }));
    const lines = await readUntil(path, '99999');
    await waiting;
    expect(pipe.isDrained).toBe(true);
    const numbers = lines.filter((line) => line.includes('gateway')).map((line) => Number(line.split(' ').at(-1)));
    expect(numbers).toEqual([...numbers].sort((a, b) => a - b));
    expect(lines.filter((line) => line.includes('quiet'))).toEqual([
      'INSTANCE "quiet" BACKUP 1',
      'INSTANCE "quiet" FAULT 2',
    ]);
    // Of those in our queue at the end, none is missing; what is missing was reported.
    expect(numbers.length + events.length).toBe(filled + 2 * MOST_LINES + 1);
    expect(numbers.at(-2)).toBe(10_000 + 2 * MOST_LINES - 1);
  });

  test('a line longer than the pipe takes at once arrives whole, however many wait behind it', async () => {
    const { path, pipe, events } = openPipe({ format: 'json' });
    const evidence = { much: 'x'.repeat(100_000) };
    pipe.write(told({ evidence }));
    expect(pipe.isDrained).toBe(false);
    for (let n = 0; n < MOST_LINES + 5; n++) pipe.write(told({ priority: n }));
    expect(events.length).toBeGreaterThan(0);
    pipe.write(told({ state: 'STOP', reason: 'the end', evidence: { last: true } }));
    const lines = await readUntil(path, '{"last":true}}');
    const read = lines.map((line) => JSON.parse(line) as NotifyState);
    expect(read[0]!.evidence).toEqual(evidence);
    expect(read.length + events.length).toBe(1 + MOST_LINES + 5 + 1);
  });

  test('a reader that removes it and makes it again is found', async () => {
    const { path, pipe } = openPipe();
    pipe.write(told({ state: 'BACKUP' }));
    rmSync(path);
    execFileSync('mkfifo', [path]);
    pipe.write(told());
    expect(await readUntil(path, '150')).toEqual(['INSTANCE "gateway" MASTER 150']);
    rmSync(path);
    pipe.write(told({ state: 'STOP' }));
    expect(await readUntil(path, '150')).toEqual(['INSTANCE "gateway" STOP 150']);
  });

  test('one that was made here is only ours, and goes with us; one that was there stays', () => {
    const { path, pipe } = openPipe();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    pipe.close();
    expect(existsSync(path)).toBe(false);
    execFileSync('mkfifo', [path]);
    openPipe({ path }).pipe.close();
    expect(statSync(path).isFIFO()).toBe(true);
  });

  test.skipIf(!isRoot)('one that is made for a user belongs to it', () => {
    const { path } = openPipe({ user: 'nobody' });
    expect(statSync(path)).toMatchObject((({ uid, gid }) => ({ uid, gid }))(findUser('nobody')!));
  });

  test('what is no FIFO, or can not be made, is told', () => {
    const folder = tempFolder();
    const file = writeFile(folder, 'notify', 'mine');
    const open = (path: string, user: string | null = null) =>
      openNotifyPipe({ path, format: 'keepalived', user, report: () => {} });
    expect(open(file)).toEqual({ problem: `${file} is there already and is not a FIFO` });
    expect(readFileSync(file, 'utf8')).toBe('mine');
    expect(open(join(folder, 'no', 'folder'))).toEqual({ problem: expect.stringContaining('No such file') });
    expect(open(join(folder, 'other'), 'nemo')).toEqual({ problem: '/etc/passwd has no user nemo' });
    expect(existsSync(join(folder, 'other'))).toBe(false);
  });

  test('what can not be written is reported, and does not hold up the rest', () => {
    const { path, pipe, events } = openPipe();
    rmSync(path);
    writeFile(join(path, '..'), 'notify', 'no FIFO any more');
    pipe.write(told());
    expect(events).toMatchObject([
      {
        type: 'notify.failed',
        code: 'PIPEERR',
        subject: 'gateway',
        message: `${path} is there already and is not a FIFO`,
      },
    ]);
    expect(pipe.isDrained).toBe(true);
  });
});
