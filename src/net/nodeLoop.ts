/**
 * Node's own event loop, seen from outside: a thread that waits in an epoll of its own has to know when libuv has
 * something to do. libuv waits in an epoll too, and an epoll can be watched by another.
 */
import assert from 'node:assert/strict';
import koffi from 'koffi';

/**
 * The descriptor of the calling thread's loop, readable while libuv has events. V8, Node and libuv export these three
 * from the node program; the first two are C++ names that native addons are linked against too.
 */
export const nodeLoopDescriptor = (): number => {
  const program = koffi.load(null);
  const currentIsolate = program.func('_ZN2v87Isolate10GetCurrentEv', 'void *', []) as () => unknown;
  const loopOf = program.func('_ZN4node19GetCurrentEventLoopEPN2v87IsolateE', 'void *', ['void *']) as (
    isolate: unknown,
  ) => unknown;
  const backendDescriptor = program.func('uv_backend_fd', 'int', ['void *']) as (loop: unknown) => number;
  const loop = loopOf(currentIsolate());
  assert(loop !== null, 'this thread has an event loop');
  const fd = backendDescriptor(loop);
  assert(fd >= 0, 'the loop has an epoll');
  return fd;
};
