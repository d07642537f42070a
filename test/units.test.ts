/** Where to listen and to connect, and the file of a Unix socket. */
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { z } from 'zod';
import { probeHttp } from '../src/checks/http.ts';
import { probeTcp } from '../src/checks/tcp.ts';
import type { CheckConfig } from '../src/config/schema.ts';
import { connectOptions, formatEndpoint, parseEndpoint, parseInetEndpoint } from '../src/config/units.ts';
import { unixSocketOptions } from '../src/config/unixSocket.ts';
import { assertBindable } from '../src/net/bindable.ts';
import { applySocketFile, socketFileOf } from '../src/net/socketFile.ts';

const makeFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
};

describe('addresses', () => {
  test.each(['127.0.0.1:80', '[::1]:80', '[::]:80', '*:80', 'web.internal:80', 'unix:/run/shop.sock', 'unix:/a b:80'])(
    '%s is read, and written as it was',
    (text) => expect(formatEndpoint(parseEndpoint(text)!)).toBe(text),
  );

  test.each(['unix:', 'unix:/', 'unix:shop.sock', 'unix:./shop.sock', 'unix:/run/', 'unix:/a\0b'])(
    'no address: %j',
    (text) => expect(parseEndpoint(text)).toBeNull(),
  );

  test('a path is at most 107 bytes long, as the kernel has it', () => {
    expect(parseEndpoint(`unix:/${'a'.repeat(106)}`)).not.toBeNull();
    expect(parseEndpoint(`unix:/${'a'.repeat(107)}`)).toBeNull();
    expect(parseEndpoint(`unix:/${'ä'.repeat(53)}`)).not.toBeNull();
    expect(parseEndpoint(`unix:/${'ä'.repeat(54)}`)).toBeNull();
  });

  test('where only IP will do, a path is no address', () => {
    expect(parseInetEndpoint('unix:/run/shop.sock')).toBeNull();
    expect(parseInetEndpoint('[::1]:80')).toEqual({ host: '::1', port: 80 });
  });

  test('what node:net is given', () => {
    expect(connectOptions(parseEndpoint('unix:/run/shop.sock')!)).toEqual({ path: '/run/shop.sock' });
    expect(connectOptions(parseEndpoint('[::1]:80')!)).toEqual({ host: '::1', port: 80 });
  });
});

describe('a server at a Unix socket', () => {
  const probed = <C>(probe: (target: never, check: C, ms: number, finish: (outcome: unknown) => void) => unknown) => {
    return (path: string, check: C) =>
      new Promise((done) => {
        const address = parseEndpoint(`unix:${path}`)!;
        probe({ pool: 'web', server: 'web1', address } as never, check, 5_000, done);
      });
  };

  test('is checked by TCP and HTTP, its Host field being localhost', async () => {
    const path = join(makeFolder(), 'web.sock');
    const hosts: (string | undefined)[] = [];
    const server = createHttpServer((request, response) => {
      hosts.push(request.headers.host);
      response.end();
    }).listen(path);
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    expect(await probed(probeTcp)(path, { type: 'tcp' } as Extract<CheckConfig, { type: 'tcp' }>)).toMatchObject({
      ok: true,
    });
    const check = { type: 'http', method: 'GET', path: '/', headers: {}, expect: [[200, 299]] } as unknown;
    expect(await probed(probeHttp)(path, check as Extract<CheckConfig, { type: 'http' }>)).toMatchObject({ ok: true });
    expect(hosts).toEqual(['localhost']);
  });
});

describe('listening at a Unix socket', () => {
  test('a path is free when nobody listens there, a file left behind or not', async () => {
    const path = join(makeFolder(), 'shop.sock');
    const endpoint = parseEndpoint(`unix:${path}`)!;
    await assertBindable('frontend shop', endpoint);
    const server = createServer().listen(path);
    await once(server, 'listening');
    await expect(assertBindable('frontend shop', endpoint)).rejects.toMatchObject({
      code: 'ADDRESS_IN_USE',
      message: `frontend shop can't listen on unix:${path}: another program listens there`,
    });
    server.close();
    await once(server, 'close');
    writeFileSync(path, '');
    await assertBindable('frontend shop', endpoint);
  });

  test('mode, user and group of its file', async () => {
    const folder = makeFolder();
    const path = join(folder, 'shop.sock');
    const server = createServer().listen(path);
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    const options = z.strictObject(unixSocketOptions).parse({ mode: '0640' });
    const [uid, gid] = [process.getuid!(), process.getgid!()];
    const file = socketFileOf({ ...options, user: String(uid), group: String(gid) });
    expect(file).toEqual({ mode: 0o640, uid, gid });
    applySocketFile(path, file as Exclude<typeof file, { refusal: string }>);
    expect(statSync(path).mode & 0o7777).toBe(0o640);
    applySocketFile(path, { mode: null, uid: null, gid: null });
    expect(statSync(path)).toMatchObject({ uid, gid });
  });

  test('names are looked up in the files of users and groups', () => {
    const folder = makeFolder();
    const [passwdFile, groupFile] = [join(folder, 'passwd'), join(folder, 'group')];
    writeFileSync(passwdFile, 'web:x:33:34::/:/bin/false\n');
    writeFileSync(groupFile, 'proxy:x:99:\n');
    const of = (options: Parameters<typeof socketFileOf>[0]) => socketFileOf(options, { passwdFile, groupFile });
    expect(of({ user: 'web', group: 'proxy' })).toEqual({ mode: null, uid: 33, gid: 99 });
    expect(of({})).toEqual({ mode: null, uid: null, gid: null });
    expect(of({ user: 'proxy' })).toEqual({ refusal: `${passwdFile} has no user proxy` });
    expect(of({ group: 'web' })).toEqual({ refusal: `${groupFile} has no group web` });
  });

  test('a mode that is no text would be read as decimal: it is refused, and the message says how', () => {
    const parse = (mode: unknown) => z.strictObject(unixSocketOptions).safeParse({ mode });
    for (const mode of [660, '668', '66', 'rw-rw----'])
      expect(parse(mode).error?.issues[0]?.message).toMatch(/octal digits in quotes, such as "660"/);
    expect(parse('660').data).toEqual({ mode: 0o660 });
  });
});
