/** A program that opens a poller and does not close it; how it ends is told by its argument. */
import { readFile } from 'node:fs/promises';
import { libc } from '../src/net/libc.ts';
import { Poller } from '../src/net/poller.ts';

const EFD_NONBLOCK = 0o4000;

const fd = libc().eventfd(0, EFD_NONBLOCK);
const signal = () => {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  libc().write(fd, one, 8);
};
const poller = Poller.open();

const endings: Record<string, () => unknown> = {
  /** Nothing else is left to do. */
  idle: () => poller.watch(fd, () => {}),
  exit: () => {
    poller.watch(fd, () => {});
    setTimeout(() => process.exit(0), 50);
  },
  /** Closed with a wait under way, which must not be waited for. */
  close: () => {
    poller.watch(fd, () => {});
    setTimeout(() => poller.close(), 50);
  },
  /** A callback that throws does not end the poller. */
  throw: () => {
    const errors: string[] = [];
    process.on('uncaughtException', ({ message }) => errors.push(message));
    let calls = 0;
    poller.watch(fd, () => {
      if (++calls === 1) throw new Error('thrown by a callback');
      process.stdout.write(`${calls} calls, ${errors.join()}`);
      poller.close();
    });
    signal();
  },
  /** With a pool of one thread: while nothing is watched, the thread is free. */
  pool: async () => {
    await readFile(import.meta.filename);
    const unwatch = poller.watch(fd, () => {});
    unwatch();
    await readFile(import.meta.filename);
    process.stdout.write('read twice');
  },
};

await endings[process.argv[2]!]!();
