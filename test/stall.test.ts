/** The proxy itself may be kept from running: by a busy machine, by the host of a virtual one, by a debugger. */
import { setTimeout as wait } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { freePorts } from './ports.ts';
import { bodyOf, eventually, get, RawClient, scriptedServer, statusOf } from './proxyHelpers.ts';
import { SoakNode } from './soak/node.ts';

const TIMEOUT_MS = 800;
const answer = (text: string) => `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n\r\n${text}`;

test('a proxy that stood still blames nobody whose bytes came in time, only those who were silent themselves', async () => {
  const server = await scriptedServer((head, socket) => {
    if (head.includes('/slow')) setTimeout(() => socket.write(answer('slow')), TIMEOUT_MS / 2);
    else if (!head.includes('/never')) socket.write(answer('ok'));
  });
  const [port] = await freePorts(1);
  const ms = `${TIMEOUT_MS}ms`;
  const node = await SoakNode.start({
    config: {
      workers: 1,
      frontends: {
        shop: {
          mode: 'http',
          bind: [`127.0.0.1:${port}`],
          use: 'web',
          timeouts: { client: ms, httpRequest: ms, keepAlive: ms },
        },
      },
      backends: { web: { timeouts: { server: ms }, servers: [{ name: 'one', address: `127.0.0.1:${server.port}` }] } },
    },
  });
  onTestFinished(async () => {
    node.child.kill('SIGCONT');
    await node.end();
  });
  const client = () => new RawClient(port!);
  const whole = get('/');
  const half = client().send(whole.slice(0, 20));
  const slow = client().send(get('/slow'));
  const never = client().send(get('/never'));
  const silent = client().send(whole.slice(0, 20));
  const kept = client().send(whole);
  await kept.until('ok');
  await eventually('all at the server', () => server.accepted >= 2);

  node.child.kill('SIGSTOP');
  half.send(whole.slice(20));
  kept.text = '';
  kept.send(whole);
  await wait(3 * TIMEOUT_MS);
  node.child.kill('SIGCONT');

  expect(bodyOf(await half.until('ok'))).toBe('ok');
  expect(bodyOf(await slow.until('slow'))).toBe('slow');
  expect(bodyOf(await kept.until('ok'))).toBe('ok');
  expect(statusOf(await never.rest())).toBe(504);
  expect(statusOf(await silent.rest())).toBe(408);
});
