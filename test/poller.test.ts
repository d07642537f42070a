import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { Heard, pollerForTest } from './namespaces.ts';

const EFD_NONBLOCK = 0o4000;

/** Something to watch: readable from `signal` to `clear`. */
const openEvent = () => {
  const fd = libc().eventfd(0, EFD_NONBLOCK);
  onTestFinished(() => void libc().close(fd));
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  return {
    fd,
    signal: () => expect(libc().write(fd, one, 8)).toBe(8),
    clear: () => libc().read(fd, Buffer.alloc(8), 8),
  };
};

/** What it says until it ends; an exit status other than 0 fails. */
const runProgram = async (ending: string, env: Record<string, string> = {}): Promise<string> => {
  const program = join(import.meta.dirname, 'pollerProgram.ts');
  const { stdout } = await promisify(execFile)(process.execPath, [program, ending], {
    env: { ...process.env, ...env },
  });
  return stdout;
};

/** In which order they end that begin at once. */
const endsOf = async (endings: Record<string, () => Promise<unknown>>): Promise<string[]> => {
  const ended: string[] = [];
  await Promise.all(Object.entries(endings).map(([name, run]) => run().then(() => ended.push(name))));
  return ended;
};

describe('a poller', () => {
  test('calls back for what is readable only, for as long as it is', async () => {
    const poller = pollerForTest();
    const [one, two] = [openEvent(), openEvent()];
    const heard = new Heard<string>();
    poller.watch(one.fd, () => heard.push('one'));
    poller.watch(two.fd, () => {
      two.clear();
      heard.push('two');
    });
    one.signal();
    await heard.count(3);
    expect(heard.all).toEqual(['one', 'one', 'one']);
    one.clear();
    two.signal();
    await heard.until('two', (name) => name === 'two');
  });

  test('takes descriptors in and out while it waits', async () => {
    const poller = pollerForTest();
    const [one, two] = [openEvent(), openEvent()];
    const heard = new Heard<string>();
    const unwatch = poller.watch(one.fd, () => heard.push('one'));
    // The wait is under way on another thread by now.
    await readFile(import.meta.filename);
    unwatch();
    unwatch();
    one.signal();
    poller.watch(two.fd, () => {
      two.clear();
      heard.push('two');
    });
    two.signal();
    expect(await heard.count(1)).toEqual(['two']);
  });

  test('calls nobody back whose watch another callback has ended', async () => {
    const poller = pollerForTest();
    const [one, two, last] = [openEvent(), openEvent(), openEvent()];
    const heard = new Heard<string>();
    const hear = (name: string) => {
      heard.push(name);
      for (const unwatch of unwatches) unwatch();
    };
    const unwatches = [poller.watch(one.fd, () => hear('one')), poller.watch(two.fd, () => hear('two'))];
    one.signal();
    two.signal();
    await heard.count(1);
    poller.watch(last.fd, () => {
      last.clear();
      heard.push('last');
    });
    last.signal();
    await heard.until('the last', (name) => name === 'last');
    expect(heard.all).toHaveLength(2);
  });

  test('may be closed by a callback, and twice', async () => {
    const poller = pollerForTest();
    const [one, two] = [openEvent(), openEvent()];
    const heard = new Heard<string>();
    const closing = () => {
      poller.close();
      poller.close();
      heard.push('closed');
    };
    poller.watch(one.fd, closing);
    poller.watch(two.fd, closing);
    one.signal();
    two.signal();
    await heard.count(1);
    await readFile(import.meta.filename);
    expect(heard.all).toEqual(['closed']);
  });

  test('still hears after a silence longer than one wait', async () => {
    const poller = pollerForTest();
    const one = openEvent();
    const heard = new Heard<string>();
    poller.watch(one.fd, () => {
      one.clear();
      heard.push('one');
    });
    setTimeout(one.signal, 2500);
    expect(await heard.count(1)).toEqual(['one']);
  });
});

describe('a process with a poller that nobody has closed', () => {
  test('ends by itself; one that exits, or closes it, is not held up by the wait under way', async () => {
    const ended = await endsOf({
      idle: () => runProgram('idle'),
      exit: () => runProgram('exit'),
      close: () => runProgram('close'),
    });
    expect(ended.at(-1)).toBe('idle');
  });

  test('goes on hearing after a callback has thrown', async () => {
    expect(await runProgram('throw')).toBe('2 calls, thrown by a callback');
  });

  test('has every thread of the pool while nothing is watched', async () => {
    let said = '';
    const ended = await endsOf({
      idle: () => runProgram('idle'),
      pool: async () => void (said = await runProgram('pool', { UV_THREADPOOL_SIZE: '1' })),
    });
    expect([said, ...ended]).toEqual(['read twice', 'pool', 'idle']);
  });
});
