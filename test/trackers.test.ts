/** Trackers look at real scripts, processes and files, once each. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, copyFileSync, mkdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { findUser, scriptUser } from '../src/net/users.ts';
import { readNumberFile } from '../src/trackers/file.ts';
import type { Observation } from '../src/trackers/observation.ts';
import { lookForProcess } from '../src/trackers/process.ts';
import { observeScript } from '../src/trackers/script.ts';
import { whyUnsafe } from '../src/runScript.ts';
import { killAtEnd, tempFolder, within, writeFile } from './nodeHelpers.ts';
import { isRoot } from './packages.ts';

const observed = (start: (done: (o: Observation) => void) => () => void): Promise<Observation> =>
  within('the observation', new Promise<Observation>((done) => start(done)));

/** For what a test's script writes: root's own user, as nobody may not write into the test's folder. */
const ourselves = isRoot ? 'root' : null;

const executable = (folder: string, name: string, text: string): string => {
  const file = writeFile(folder, name, `#!/bin/sh\n${text}\n`);
  chmodSync(file, 0o755);
  return file;
};

describe('script', () => {
  const run = (
    command: string[],
    { timeoutMs = 5000, user = ourselves }: { timeoutMs?: number; user?: string | null } = {},
  ) => observed((done) => observeScript({ command, timeoutMs, user }, done));

  test('exit status 0 is ok, all else is not', async () => {
    expect(await run(['true'])).toMatchObject({ ok: true, value: null, code: 'PROCOK', message: '' });
    expect(await run(['sh', '-c', 'exit 3'])).toMatchObject({
      ok: false,
      code: 'PROCERR',
      message: 'sh ended with status 3',
    });
    expect(await run(['/nowhere/check'])).toMatchObject({ ok: false, code: 'PROCERR' });
    expect(await run(['sh', '-c', 'a\0b'])).toMatchObject({ ok: false, code: 'PROCERR' });
    expect(await run(['sleep', '600'], { timeoutMs: 50 })).toMatchObject({ ok: false, code: 'PROCTOUT' });
  });

  test('the time that it took, in ms', async () => {
    const { durationMs } = await run(['sleep', '0.2']);
    expect(durationMs).toBeGreaterThanOrEqual(200);
  });

  test('after an abort nothing is told and nothing is left', async () => {
    const { name, file } = sleeper('usd-aborted');
    const told: Observation[] = [];
    const abort = observeScript({ command: [file, '600'], timeoutMs: 5000, user: ourselves }, (o) => told.push(o));
    await untilRuns(name, 1);
    abort();
    await untilRuns(name, 0);
    expect(told).toEqual([]);
  });

  test('a user that does not exist', async () => {
    expect(await run(['true'], { user: 'nemo' })).toMatchObject({
      ok: false,
      code: 'PROCUSER',
      message: '/etc/passwd has no user nemo',
    });
  });

  test.skipIf(!isRoot)('root starts it as an unprivileged user, without a single group more', async () => {
    const before = process.getgroups!();
    onTestFinished(() => process.setgroups!(before));
    // Else there would be none to be lost.
    process.setgroups!([4, 24]);
    const folder = tempFolder();
    chmodSync(folder, 0o777);
    const report = async (user: string | null) => {
      const file = join(folder, `status-${user}`);
      expect(
        await run(['sh', '-c', `grep -E '^(Uid|Gid|Groups|CapEff):' /proc/self/status > ${file}`], { user }),
      ).toMatchObject({
        ok: true,
      });
      return readFileSync(file, 'utf8')
        .trim()
        .split('\n')
        .map((line) => line.trim().split(/\s+/));
    };
    const someone = findUser('keepalived_script') ?? findUser('nobody')!;
    const four = (id: number) => Array.from({ length: 4 }, () => String(id));
    expect(await report(null)).toEqual([
      ['Uid:', ...four(someone.uid)],
      ['Gid:', ...four(someone.gid)],
      ['Groups:'],
      ['CapEff:', '0000000000000000'],
    ]);
    expect((await report('root')).slice(0, 3)).toEqual([['Uid:', ...four(0)], ['Gid:', ...four(0)], ['Groups:']]);
  });

  test.skipIf(!isRoot)('what others could change is not run as root, and is as them', async () => {
    const file = executable(tempFolder(), 'check.sh', 'exit 0');
    chmodSync(join(file, '..'), 0o755);
    expect(await run([file], { user: 'root' })).toMatchObject({ ok: true });
    chmodSync(file, 0o777);
    expect(await run([file], { user: 'root' })).toMatchObject({
      ok: false,
      code: 'PROCUNSAFE',
      message: `${file} is not run as root: ${file} can be written by everybody`,
    });
    expect(await run([file], { user: null })).toMatchObject({ ok: true });
  });
});

describe('what is unsafe to run as root', () => {
  const script = (): { folder: string; file: string } => {
    const folder = tempFolder();
    return { folder, file: executable(folder, 'check.sh', 'exit 0') };
  };

  test.skipIf(!isRoot)('a file, or a folder on the way to it, that others can write', () => {
    const { folder, file } = script();
    expect(whyUnsafe([file])).toBe(null);
    chmodSync(file, 0o757);
    expect(whyUnsafe([file])).toContain('can be written by everybody');
    chmodSync(file, 0o775);
    expect(whyUnsafe([file])).toBe(null);
    chownSync(file, 0, 4);
    expect(whyUnsafe([file])).toContain('can be written by the group 4');
    chownSync(file, 65_534, 0);
    expect(whyUnsafe([file])).toContain('belongs to the user 65534');
    chownSync(file, 0, 0);
    chmodSync(folder, 0o777);
    expect(whyUnsafe([file])).toContain(`${folder} can be written by everybody`);
    // As of /tmp itself: others can make files there, but not touch root's.
    chmodSync(folder, 0o1777);
    expect(whyUnsafe([file])).toBe(null);
  });

  test.skipIf(!isRoot)('what a link leads to', () => {
    const { folder, file } = script();
    const open = join(folder, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    copyFileSync(file, join(open, 'check.sh'));
    const link = join(folder, 'link.sh');
    symlinkSync(join(open, 'check.sh'), link);
    expect(whyUnsafe([link])).toContain(`${open} can be written by everybody`);
  });

  test.skipIf(!isRoot)('the script that an interpreter is given', () => {
    const { file } = script();
    expect(whyUnsafe(['sh', file])).toBe(null);
    chmodSync(file, 0o777);
    expect(whyUnsafe(['sh', file])).toContain(`${file} can be written by everybody`);
    expect(whyUnsafe(['test', '-e', file])).toBe(null);
    expect(whyUnsafe(['sh', '-c', 'true'])).toBe(null);
  });

  test('what is not there is left to running it', () => {
    expect(whyUnsafe(['/nowhere/check'])).toBe(null);
    expect(whyUnsafe(['understudy-no-such-program'])).toBe(null);
  });
});

describe('the user of a script', () => {
  const passwd = (...lines: string[]) => writeFile(tempFolder(), 'passwd', `${lines.join('\n')}\n`);
  const root = 'root:x:0:0:root:/root:/bin/bash';
  const nobody = 'nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin';
  const keepalived = 'keepalived_script:x:990:991::/:/usr/sbin/nologin';

  test('of root: keepalived_script, else nobody, else nobody at all', () => {
    const asRoot = (...lines: string[]) => scriptUser(null, { ourUid: 0, passwdFile: passwd(...lines) });
    expect(asRoot(root, nobody, keepalived)).toEqual({ user: { name: 'keepalived_script', uid: 990, gid: 991 } });
    expect(asRoot(root, nobody)).toEqual({ user: { name: 'nobody', uid: 65_534, gid: 65_533 } });
    expect(asRoot(root)).toEqual({ refusal: expect.stringMatching(/no user keepalived_script or nobody$/) });
  });

  test('of others: themselves only', () => {
    const passwdFile = passwd(root, nobody, 'ada:x:1000:1000::/home/ada:/bin/sh');
    expect(scriptUser(null, { ourUid: 1000, passwdFile })).toEqual({ user: null });
    expect(scriptUser('ada', { ourUid: 1000, passwdFile })).toEqual({ user: null });
    expect(scriptUser('nobody', { ourUid: 1000, passwdFile })).toEqual({
      refusal: 'only root can run a script as nobody',
    });
  });

  test('damaged lines are passed over, and a missing file is told', () => {
    const passwdFile = passwd('', 'ada', 'ada:x::1000', 'ada:x:-1:5', 'ada:x:7:8:::');
    expect(findUser('ada', passwdFile)).toEqual({ name: 'ada', uid: 7, gid: 8 });
    expect(findUser('', passwdFile)).toBe(null);
    expect(scriptUser('ada', { ourUid: 0, passwdFile: '/nowhere/passwd' })).toEqual({
      refusal: expect.stringContaining('ENOENT'),
    });
  });
});

/** A copy of sleep with a name that no other process of this machine has. */
const sleeper = (name: string): { name: string; file: string } => {
  const own = `${name}-${process.pid}`;
  const file = join(tempFolder(), own);
  copyFileSync(execFileSync('sh', ['-c', 'command -v sleep'], { encoding: 'utf8' }).trim(), file);
  chmodSync(file, 0o755);
  return { name: own, file };
};

const start = async (file: string, args: string[]): Promise<void> => {
  const child = spawn(file, args, { stdio: 'ignore' });
  killAtEnd(child);
  await once(child, 'spawn');
};

const search = (name: string, o: { command?: boolean; min?: number; max?: number | null } = {}): Promise<Observation> =>
  observed((done) => lookForProcess({ name, command: false, min: 1, max: null, timeoutMs: 5000, ...o }, done));

const untilRuns = (name: string, number: number): Promise<void> =>
  within(
    `${number} of ${name}`,
    (async () => {
      while (!(await search(name, { min: number, max: number })).ok);
    })(),
  );

describe('process', () => {
  test('at least so many, at most so many', async () => {
    const { name, file } = sleeper('usd');
    const zero = await search(name);
    expect(zero).toMatchObject({ ok: false, value: null, code: 'PROCSFEW' });
    expect(zero.message).toBe(`0 processes named ${name}, at least 1 must run`);
    expect(await search(name, { min: 0, max: 0 })).toMatchObject({ ok: true });
    await start(file, ['600']);
    expect(await search(name)).toMatchObject({ ok: true, value: null, code: 'PROCSOK', message: '' });
    expect(await search(name, { min: 2 })).toMatchObject({
      ok: false,
      message: `1 process named ${name}, at least 2 must run`,
    });
    expect(await search(name, { min: 0, max: 0 })).toMatchObject({ ok: false, code: 'PROCSMANY' });
    await start(file, ['600']);
    expect(await search(name, { min: 2, max: 2 })).toMatchObject({ ok: true });
    expect(await search(name, { max: 1 })).toMatchObject({
      ok: false,
      code: 'PROCSMANY',
      message: `2 processes named ${name} or more, at most 1 may run`,
    });
  });

  test('the name exactly, as far as the kernel keeps it; the command line anywhere', async () => {
    const { name, file } = sleeper('understudy-sleeper');
    await start(file, ['600']);
    expect(name.length).toBeGreaterThan(15);
    expect(await search(name)).toMatchObject({ ok: true });
    expect(await search(name.slice(0, 14))).toMatchObject({ ok: false });
    expect(await search(`${name} 600`, { command: true })).toMatchObject({ ok: true });
    expect(await search(`${name} 601`, { command: true })).toMatchObject({ ok: false });
    expect(await search(file.slice(1), { command: true, min: 2 })).toMatchObject({ ok: false });
  });

  test('a zombie does not run, and nor do we', async () => {
    const { name, file } = sleeper('usz');
    // What becomes of the shell never looks after its child.
    const parent = spawn('sh', ['-c', `${file} 0 & echo $!; exec sleep 600`], { stdio: ['ignore', 'pipe', 'ignore'] });
    killAtEnd(parent);
    const [pid] = (await once(parent.stdout, 'data')) as [Buffer];
    const stat = () => readFileSync(`/proc/${Number(pid)}/stat`, 'utf8');
    await within(
      'the zombie',
      (async () => {
        while (!stat().includes(`(${name}) Z`)) await new Promise((done) => setImmediate(done));
      })(),
    );
    expect(await search(name)).toMatchObject({ ok: false });
    const { title } = process;
    onTestFinished(() => {
      process.title = title;
    });
    process.title = `us-self-${process.pid}`;
    expect(readFileSync('/proc/self/cmdline', 'utf8')).toContain(process.title);
    expect(await search(process.title, { command: true })).toMatchObject({ ok: false, code: 'PROCSFEW' });
    expect(await search(readFileSync('/proc/1/comm', 'utf8').trim())).toMatchObject({ ok: true });
  });

  test('after an abort nothing is told', async () => {
    const told: Observation[] = [];
    lookForProcess({ name: 'x', command: false, min: 1, max: null, timeoutMs: 5000 }, (o) => told.push(o))();
    // Started later, ends later.
    await search('x');
    expect(told).toEqual([]);
  });
});

describe('file', () => {
  const look = (path: string): Promise<Observation> =>
    observed((done) => readNumberFile({ path, timeoutMs: 5000 }, done));
  const holding = (text: string): Promise<Observation> => look(writeFile(tempFolder(), 'weight', text));

  test.each([
    ['5\n', 5],
    ['-20', -20],
    [' +7 \n', 7],
    ['0', 0],
    ['-0', 0],
    ['', 0],
    ['\n', 0],
    ['254', 254],
    ['-300', -254],
    ['1000', 254],
  ])('%j is %d', async (text, value) => {
    expect(await holding(text)).toMatchObject({ ok: true, value, code: 'FILEOK' });
  });

  test('no file is 0, and says so', async () => {
    const path = join(tempFolder(), 'weight');
    expect(await look(path)).toMatchObject({ ok: true, value: 0, code: 'FILEOK', message: `there is no ${path}` });
  });

  test.each(['high', '1O', '010', '0x10', '1.5', '1 2', '2147483648', '9'.repeat(200)])(
    '%j is no number',
    async (text) => {
      expect(await holding(text)).toMatchObject({ ok: false, value: null, code: 'FILEVAL' });
    },
  );

  test('what can not be read is told', async () => {
    const folder = tempFolder();
    expect(await look(folder)).toMatchObject({
      ok: false,
      code: 'FILEERR',
      message: `${folder} can't be read: it is not a regular file`,
    });
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    expect(await look(fifo)).toMatchObject({ ok: false, code: 'FILEERR' });
    rmSync(fifo);
  });
});
