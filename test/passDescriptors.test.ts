/** Open descriptors over a Unix socket, with a line that says what they are. */
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { MAX_DESCRIPTORS_PER_MESSAGE, receiveDescriptors, sendDescriptors } from '../src/net/passDescriptors.ts';
import { acceptFrom, listenOn, localOf, socketAddressOf, startConnecting } from '../src/net/tcpSocket.ts';
import { tempFolder } from './nodeHelpers.ts';
import { HOST, LISTEN, opened } from './reactorHelpers.ts';

const F_GETFD = 1;

const closedAtEnd = (...descriptors: number[]): void =>
  onTestFinished(() => {
    for (const fd of descriptors) libc().close(fd);
  });

/** Both ends, which don't block. */
const pair = (): [number, number] => {
  const endpoint = { host: '', port: 0, path: join(tempFolder(), 'one.sock') };
  const listening = opened(listenOn(endpoint, LISTEN));
  const near = opened(startConnecting(socketAddressOf(endpoint)));
  const accepted = acceptFrom(listening);
  libc().close(listening);
  if (!accepted) throw new Error('nobody waits');
  const far = opened(accepted);
  closedAtEnd(near, far);
  return [near, far];
};

const listening = (): number => {
  const fd = opened(listenOn({ host: HOST, port: 0 }, LISTEN));
  closedAtEnd(fd);
  return fd;
};

const receive = (socket: number) => {
  const message = receiveDescriptors(socket);
  closedAtEnd(...(message?.descriptors ?? []));
  return message;
};

test.each([0, 1, 2, 3, 100, MAX_DESCRIPTORS_PER_MESSAGE])(
  '%d of them arrive, in order, as the same sockets',
  (count) => {
    const [near, far] = pair();
    const two = [listening(), listening()];
    const sent = Array.from({ length: count }, (_, index) => two[index % 2]!);
    expect(sendDescriptors(near, `listener shop/ä${count}`, sent)).toBeNull();
    const message = receive(far)!;
    expect(message.line).toBe(`listener shop/ä${count}`);
    expect(message.descriptors.map((fd) => localOf(fd).port)).toEqual(sent.map((fd) => localOf(fd).port));
    for (const fd of message.descriptors) expect([sent.includes(fd), libc().fcntl(fd, F_GETFD, 0)]).toEqual([false, 1]);
  },
);

test('lines with descriptors are not joined by the kernel, and those without only with the next', () => {
  const [near, far] = pair();
  const fd = listening();
  for (const [line, descriptors] of [
    ['a', [fd]],
    ['b', []],
    ['c', [fd, fd]],
    ['d', []],
  ] as [string, number[]][])
    expect(sendDescriptors(near, line, descriptors)).toBeNull();
  const got: [string, number][] = [];
  for (let message = receive(far); message; message = receive(far))
    got.push([message.line, message.descriptors.length]);
  const lines = got.flatMap(([line, count]) =>
    line.split('\n').map((one, at, all) => [one, at === all.length - 1 ? count : 0]),
  );
  expect(lines).toEqual([
    ['a', 1],
    ['b', 0],
    ['c', 2],
    ['d', 0],
  ]);
});

test('more than fit one message, or a line too long, is an assertion', () => {
  const [near] = pair();
  const many = Array.from({ length: MAX_DESCRIPTORS_PER_MESSAGE + 1 }, () => 0);
  expect(() => sendDescriptors(near, 'x', many)).toThrow(/fits one message/);
  expect(() => sendDescriptors(near, 'x'.repeat(5000), [])).toThrow(/fits one message/);
});

test('a descriptor that is not open, and a peer that is gone, are told', () => {
  const [near, far] = pair();
  expect(sendDescriptors(near, 'x', [999_999])).toBe('EBADF');
  expect(receive(far)).toBeNull();
  libc().shutdown(far, 2);
  expect(sendDescriptors(near, 'x', [])).toBe('EPIPE');
});

test('nothing yet, and the end, are null', () => {
  const [near, far] = pair();
  expect(receive(far)).toBeNull();
  libc().shutdown(near, 1);
  expect(receive(far)).toBeNull();
});
