/** The demo as a script would run it: one JSON object, nobody's request failed, a journal that verifies, nothing left. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { killAtEnd, program, tempFolder, understudy, within } from './nodeHelpers.ts';

/** Processes whose command line names something, such as a folder of this test. */
const processesOf = (text: string): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return pid !== process.pid && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(text);
      } catch {
        return false;
      }
    });

/** Those started by a process, and by them in turn. */
const childrenOf = (pid: number): number[] => {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .filter(Boolean)
      .map(Number);
    return children.concat(children.flatMap(childrenOf));
  } catch {
    return [];
  }
};

const isRunning = (pid: number): boolean => {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

test('the scenario', async () => {
  const folder = tempFolder();
  const ran = await understudy(['demo', '--scenario', '--json', '--data', folder]);
  expect(ran.stderr).toBe('');
  expect(ran.status).toBe(0);
  const result = JSON.parse(ran.stdout) as {
    requests: number;
    failed: number;
    transitions: Record<string, unknown>[];
    failovers: { how: string; gapMs: number }[];
  };
  expect(Object.keys(result).toSorted()).toEqual(['failed', 'failovers', 'requests', 'transitions']);
  expect(result.failed).toBe(0);
  expect(result.requests).toBeGreaterThan(1000);
  const steps = result.transitions.map(({ node, actor, to }) => `${String(node)} ${String(actor)} ${String(to)}`);
  expect(steps).toContain('lb1 server/web/web2 down,ready,cold');
  expect(steps).toContain('lb1 server/web/web3 down,ready,cold');
  expect(steps).toContain('lb1 server/web/web1 up,drain,warm');
  // When lb1 was stopped, and when it died; and at the start, if lb2 was the first to be up.
  expect(steps.filter((step) => step === 'lb2 router/gateway master').length).toBeGreaterThanOrEqual(2);
  expect(result.failovers.map(({ how }) => how)).toEqual(['SIGTERM', 'SIGKILL']);
  expect(processesOf(folder)).toEqual([]);
  for (const journal of ['lb1.db', 'lb2.db']) {
    const verified = await understudy(['verify', join(folder, journal), '--json']);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true });
  }
});

test('however it is ended, nothing of it is left', async () => {
  const folder = tempFolder();
  const demo = spawn(program, ['demo', '--data', folder], { stdio: ['ignore', 'pipe', 'pipe'] });
  killAtEnd(demo);
  let text = '';
  await within(
    'the welcome',
    new Promise<void>((done) => {
      demo.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        if (text.includes('Ctrl-C ends everything')) done();
      });
    }),
  );
  const started = childrenOf(demo.pid!);
  expect(started.length).toBeGreaterThanOrEqual(6);
  onTestFinished(() => {
    for (const pid of started.filter(isRunning)) process.kill(pid, 'SIGKILL');
  });
  const exited = once(demo, 'exit');
  demo.kill('SIGKILL');
  await exited;
  await within(
    'the end of all that it started',
    (async () => {
      while (started.some(isRunning)) await new Promise((done) => setImmediate(done));
    })(),
    5000,
  );
});

test('a folder that can not be made: 3', async () => {
  expect(await understudy(['demo', '--scenario', '--data', '/etc/hostname/demo'])).toMatchObject({
    status: 3,
    stdout: '',
  });
});
