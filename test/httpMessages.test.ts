/** Messages of HTTP/1.1 on their way through workers: order, framing, and what is never passed on. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  bodyOf,
  eventually,
  get,
  getAndClose,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions, RawServer } from './proxyHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

const post = (fields: string, body = '', path = '/'): string =>
  `POST ${path} HTTP/1.1\r\nHost: shop.example\r\n${fields}\r\n${body}`;

const statusesOf = (text: string): number[] =>
  [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1]));

/** One worker before one server. */
const proxyBefore = (server: { port: number }, more: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  startProxy({ servers: { s: server }, workers: 1, retries: 0, ...more });

/** A server that says this once to each connection, when the head of a request has come. */
const saying = (text: string): Promise<RawServer> =>
  scriptedServer((_head, socket) => socket.write(Buffer.from(text, 'latin1')));

type Recorder = RawServer & { seen: string; ended: number; closed: number };

/** Keeps all that it gets and answers with `reply` when that ends with `end`. */
const recorder = async (end = '\r\n\r\n', reply = OK): Promise<Recorder> => {
  const server = (await rawServer((socket) => {
    socket.on('data', (chunk) => {
      server.seen += chunk.toString('latin1');
      if (server.seen.endsWith(end)) socket.write(reply);
    });
    socket.on('end', () => {
      server.ended++;
      socket.end();
    });
    socket.on('close', () => server.closed++);
  })) as Recorder;
  server.seen = '';
  server.ended = server.closed = 0;
  return server;
};

/** What a server sees of this request. */
const seenFor = async (request: string, more: Partial<ProxyOptions> = {}, end?: string): Promise<string> => {
  const server = await recorder(end);
  const proxy = await proxyBefore(server, more);
  await new RawClient(proxy.port).send(request).until('ok');
  return server.seen;
};

/** What a client gets when a server answers so. */
const answerFor = async (answer: string, request = getAndClose()): Promise<string> => {
  const proxy = await proxyBefore(await saying(answer));
  return talk(proxy.port, request);
};

describe('RFC 9112 9.3.2: pipelined requests are answered in their order', () => {
  test('also when the first takes longest, and the next one is sent on when it is answered', async () => {
    let release = () => {};
    const paths: string[] = [];
    const server = await scriptedServer((head, socket) => {
      const path = head.split(' ')[1]!;
      paths.push(path);
      const answer = () => socket.write(`HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n${path}`);
      if (path === '/1') release = answer;
      else answer();
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(get('/1') + get('/2') + getAndClose('/3'));
    await eventually('the first is at the server', () => paths.length > 0);
    expect(paths).toEqual(['/1']);
    release();
    expect((await client.rest()).match(/\/\d(?=HTTP|$)/g)).toEqual(['/1', '/2', '/3']);
    expect(paths).toEqual(['/1', '/2', '/3']);
  });

  test('with bodies of both framings between them, in one packet and byte by byte', async () => {
    const requests =
      post('Content-Length: 5\r\n', 'GET /', '/1') +
      get('/2') +
      post('Transfer-Encoding: chunked\r\n', '4\r\nGET \r\n2\r\n/x\r\n0\r\n\r\n', '/3') +
      getAndClose('/4');
    for (const parts of [[requests], requests.split('')]) {
      const bodies: string[] = [];
      const server = await rawServer((socket) => {
        let input = '';
        socket.on('data', (chunk) => {
          input += chunk.toString('latin1');
          for (;;) {
            const found = /^(\w+) (\/\d) [^]*?\r\n\r\n/.exec(input);
            const [head = '', , path = ''] = found ?? [];
            const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
            const isChunked = /chunked/.test(head);
            const end = isChunked ? input.indexOf('0\r\n\r\n') + 5 : head.length + length;
            if (!found || input.length < end || (isChunked && end < 5)) return;
            bodies.push(path + input.slice(head.length, end));
            input = input.slice(end);
            socket.write(`HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n${path}`);
          }
        });
      });
      const proxy = await proxyBefore(server);
      const client = new RawClient(proxy.port);
      client.socket.setNoDelay(true);
      for (const part of parts) client.send(part);
      expect((await client.rest()).match(/\/\d(?=HTTP|$)/g)).toEqual(['/1', '/2', '/3', '/4']);
      expect(bodies).toEqual(['/1GET /', '/2', '/34\r\nGET \r\n2\r\n/x\r\n0\r\n\r\n', '/4']);
    }
  });

  test('up to one that is refused: what stands before it is answered, what stands behind it is not looked at', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server);
    const text = await talk(proxy.port, `${get('/1')}GET /2 HTTP/1.1\r\nHost : a\r\n\r\n${get('/3')}`);
    expect(statusesOf(text)).toEqual([200, 400]);
    expect(server.seen).toMatch(/^GET \/1 /);
    expect(server.seen).not.toMatch(/\/2|\/3/);
  });

  test('up to one that asks to close', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server);
    expect(statusesOf(await talk(proxy.port, get('/1') + getAndClose('/2') + get('/3')))).toEqual([200, 200]);
    expect(server.seen).not.toContain('/3');
  });

  test('RFC 9112 2.2: empty lines before a request are passed over', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server);
    expect(statusesOf(await talk(proxy.port, `\r\n${get()}\r\n\r\n${getAndClose()}`))).toEqual([200, 200]);
  });
});

describe('RFC 9110 15.2: interim answers', () => {
  const hints = 'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n';

  test('all are passed on, in their order, before the final one', async () => {
    const text = await answerFor(`HTTP/1.1 100 Continue\r\n\r\n${hints}${hints}${OK}`);
    expect(text).toBe(
      `HTTP/1.1 100 Continue\r\n\r\n${hints}${hints}${OK.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n')}`,
    );
  });

  test('are passed on when they come, not with the final one', async () => {
    let finish = () => {};
    const server = await scriptedServer((_head, socket) => {
      socket.write(hints);
      finish = () => socket.write(OK);
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(getAndClose());
    expect(await client.until('\r\n\r\n')).toBe(hints);
    finish();
    expect(statusesOf(await client.rest())).toEqual([103, 200]);
  });

  test('are not sent to HTTP/1.0, which has none', async () => {
    const text = await answerFor(`HTTP/1.1 100 Continue\r\n\r\n${hints}${OK}`, 'GET / HTTP/1.0\r\n\r\n');
    expect(statusesOf(text)).toEqual([200]);
  });

  test('are subject to the rules of connections too: what Connection names stays here', async () => {
    const text = await answerFor(`HTTP/1.1 103 Early Hints\r\nConnection: x-a\r\nX-A: 1\r\nLink: </a>\r\n\r\n${OK}`);
    expect(text).toMatch(/^HTTP\/1\.1 103 Early Hints\r\nLink: <\/a>\r\n\r\nHTTP\/1\.1 200/);
  });

  test('one in which the server breaks off is not the answer', async () => {
    const server = await scriptedServer((_head, socket) => socket.end(hints));
    const proxy = await proxyBefore(server);
    expect(statusesOf(await talk(proxy.port, getAndClose()))).toEqual([103, 502]);
  });
});

describe('RFC 9110 10.1.1: Expect: 100-continue', () => {
  const expecting = post('Content-Length: 5\r\nExpect: 100-continue\r\n');

  test('goes to the server, which alone decides; the body follows its 100', async () => {
    const server = await rawServer((socket) => {
      let input = '';
      socket.on('data', (chunk) => {
        input += chunk.toString('latin1');
        if (input.endsWith('\r\n\r\n')) socket.write('HTTP/1.1 100 Continue\r\n\r\n');
        if (input.endsWith('hello')) socket.write(OK);
      });
      socket.on('end', () => expect(input).toMatch(/\r\nExpect: 100-continue\r\n/));
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(expecting);
    expect(await client.until('\r\n\r\n')).toBe('HTTP/1.1 100 Continue\r\n\r\n');
    client.send('hello');
    await client.until('ok');
    client.send(get());
    await eventually('the connection goes on', () => server.accepted > 0);
    expect(statusesOf(client.text)).toEqual([100, 200]);
  });

  test('a final status instead of the 100 ends the connection, as nobody knows whether the body comes', async () => {
    const server = await recorder('\r\n\r\n', 'HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno');
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(expecting);
    expect(bodyOf(await client.rest())).toBe('no');
    expect(statusesOf(client.text)).toEqual([417]);
    expect(client.error).toBeNull();
    await eventually('the server is left', () => server.closed === 1);
    // The body would have been read as a request by a server whose connection was kept.
    expect(server.seen).not.toContain('hello');
  });

  test('a body that does not wait for it passes all the same', async () => {
    const server = await recorder('hello');
    const proxy = await proxyBefore(server);
    await new RawClient(proxy.port).send(`${expecting}hello`).until('ok');
    expect(server.seen).toMatch(/\r\n\r\nhello$/);
  });
});

describe('answers without a body, whatever their fields say', () => {
  test.each([
    ['RFC 9110 9.3.2: to HEAD', 'HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n', /Content-Length: 1000\r\n/],
    ['RFC 9112 6.1: to HEAD, chunked', 'HEAD', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', /chunked\r\n/],
    ['RFC 9112 6.3: to HEAD, without a length', 'HEAD', 'HTTP/1.1 200 OK\r\nX: y\r\n\r\n', /X: y\r\n/],
    [
      'RFC 9110 15.4.5: 304',
      'GET',
      'HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n',
      /Content-Length: 1000/,
    ],
    ['RFC 9110 15.3.5: 204', 'GET', 'HTTP/1.1 204 No Content\r\nX: y\r\n\r\n', /X: y/],
  ])('%s', async (_what, method, answer, field) => {
    const server = await scriptedServer((head, socket) => socket.write(head.includes('/next') ? OK : answer));
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(`${method} / HTTP/1.1\r\nHost: a\r\n\r\n`);
    const first = await client.until('\r\n\r\n');
    expect(first).toMatch(field);
    expect(bodyOf(first)).toBe('');
    client.send(getAndClose('/next'));
    expect(bodyOf(await client.rest()).endsWith('\r\n\r\nok')).toBe(true);
    expect(server.accepted).toBe(1);
  });

  test('RFC 9110 8.6, RFC 9112 6.1: a 204 is passed on without Content-Length and Transfer-Encoding', async () => {
    expect(await answerFor('HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n')).not.toMatch(/content-length/i);
    expect(await answerFor('HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n')).not.toMatch(/chunked/i);
  });

  test.each([
    ['a body behind the answer to HEAD', 'HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\n'],
    ['a body behind a 204', 'GET', 'HTTP/1.1 204 No Content\r\n\r\n'],
    ['a body behind a 304', 'GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 38\r\n\r\n'],
    ['more than Content-Length', 'GET', OK],
    [
      'something behind the last chunk',
      'GET',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n',
    ],
  ])('RFC 9112 6.3: %s is not the next answer: that connection is not used again', async (_what, method, answer) => {
    const forged = 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged';
    const server = await scriptedServer((head, socket) => socket.write(head.includes('/next') ? OK : answer + forged));
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(`${method} / HTTP/1.1\r\nHost: a\r\n\r\n${getAndClose('/next')}`);
    const text = await client.rest();
    expect(text).not.toContain('forged');
    expect(text).toMatch(/ok$/);
    expect(server.accepted).toBe(2);
  });
});

describe('framing', () => {
  const chunked = '5;a=b;c="d\\"e"\r\nhello\r\n1\r\n!\r\n0;last\r\nX-Sum: 1\r\nX-Other: two\r\n\r\n';

  test('RFC 9112 7.1: chunks, their extensions and trailers pass both ways as they are, however they are cut', async () => {
    const answer = `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n${chunked}`;
    const request = post('Transfer-Encoding: chunked\r\nTE: trailers\r\n', chunked);
    let seen = '';
    const server = await rawServer((socket) => {
      socket.setNoDelay(true);
      socket.on('data', (chunk) => {
        seen += chunk.toString('latin1');
        if (seen.endsWith('X-Other: two\r\n\r\n')) for (const byte of answer) socket.write(byte);
      });
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port);
    client.socket.setNoDelay(true);
    for (const byte of request) client.send(byte);
    expect(bodyOf(await client.until('X-Other: two\r\n\r\n'))).toBe(chunked);
    expect(bodyOf(seen)).toBe(chunked);
    // RFC 9110 section 10.1.4: who sends TE names it in Connection.
    expect(seen).toContain('TE: trailers\r\nConnection: TE\r\n');
    client.send(get());
    await eventually('the next request goes over the same connection', () => seen.includes('GET / HTTP/1.1'));
    expect(server.accepted).toBe(1);
  });

  test.each([
    ['X: y\r\n', 'HTTP/1.1'],
    ['Connection: keep-alive\r\n', 'HTTP/1.1'],
    ['X: y\r\n', 'HTTP/1.0'],
  ])(
    'RFC 9112 6.3: an answer without a length lasts until the connection ends, with %j in %s',
    async (fields, version) => {
      const server = await scriptedServer((_head, socket) => {
        socket.write(`${version} 200 OK\r\n${fields}\r\nfirst`);
        setImmediate(() => socket.end(' last'));
      });
      const proxy = await proxyBefore(server);
      const client = new RawClient(proxy.port).send(get());
      const text = await client.rest();
      expect(bodyOf(text)).toBe('first last');
      expect(text).toContain('Connection: close\r\n');
      expect(client.error).toBeNull();
    },
  );

  test('RFC 9112 9.3: an answer of HTTP/1.0 with a length leaves the client connected, and its own connection ends', async () => {
    const server = await saying('HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok');
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    client.send(getAndClose());
    expect(statusesOf(await client.rest())).toEqual([200, 200]);
    expect(server.accepted).toBe(2);
  });

  test('RFC 9112 7.1: an HTTP/1.0 client gets the content of chunks, without extensions and trailers', async () => {
    const text = await answerFor(
      `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunked}`,
      'GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n',
    );
    expect(text).not.toMatch(/transfer-encoding|keep-alive/i);
    expect(text).toContain('Connection: close\r\n');
    expect(bodyOf(text)).toBe('hello!');
  });

  test('a request body of HTTP/1.0 is passed on as HTTP/1.1', async () => {
    const seen = await seenFor('POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello', {}, 'hello');
    expect(seen).toMatch(/^POST \/ HTTP\/1\.1\r\nHost: a\r\nContent-Length: 5\r\n/);
    expect(bodyOf(seen)).toBe('hello');
  });

  test('RFC 9112 6.3: a request without a length has no body, a length of 0 too', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server);
    const text = await talk(proxy.port, post('') + post('Content-Length: 0\r\n') + getAndClose());
    expect(statusesOf(text)).toEqual([200, 200, 200]);
  });
});

describe('targets', () => {
  test.each([
    ['absolute form', 'GET http://real.example:8080/x?y=1 HTTP/1.1', 'GET /x?y=1 HTTP/1.1', 'real.example:8080'],
    ['absolute form without a path', 'GET http://real.example HTTP/1.1', 'GET / HTTP/1.1', 'real.example'],
    [
      'absolute form of OPTIONS without a path',
      'OPTIONS http://real.example HTTP/1.1',
      'OPTIONS * HTTP/1.1',
      'real.example',
    ],
    ['asterisk form', 'OPTIONS * HTTP/1.1', 'OPTIONS * HTTP/1.1', 'other.example'],
    [
      'a path that looks like an authority',
      'GET //evil.example/x HTTP/1.1',
      'GET //evil.example/x HTTP/1.1',
      'other.example',
    ],
  ])('RFC 9112 3.2: %s', async (_what, line, seenLine, host) => {
    const seen = await seenFor(`${line}\r\nHost: other.example\r\n\r\n`);
    expect(seen.split('\r\n')[0]).toBe(seenLine);
    expect(seen.match(/^host: .*$/gim)).toEqual([`Host: ${host}`]);
  });
});

describe('early answers', () => {
  const SIZE = 8 * 1024 * 1024;
  const page = 'too much '.repeat(2_000);
  const early = `HTTP/1.1 413 Content Too Large\r\nContent-Length: ${page.length}\r\nConnection: close\r\n\r\n${page}`;

  test.each([
    ['that goes on reading', false],
    ['that closes without reading', true],
  ])(
    'RFC 9112 9.6: a client that uploads on gets the whole answer of a server %s, then an end',
    async (_what, closes) => {
      const server = await rawServer((socket) => {
        socket.once('data', () => {
          socket.write(early);
          if (!closes) return;
          socket.pause();
          socket.destroySoon();
        });
      });
      const proxy = await proxyBefore(server);
      const client = new RawClient(proxy.port);
      client.send(post(`Content-Length: ${SIZE}\r\n`)).send(Buffer.alloc(SIZE));
      expect(bodyOf(await client.rest())).toBe(page);
      expect(client.error).toBeNull();
      await eventually(
        'nobody is left',
        () => proxy.figures('front').active === 0 && proxy.figures('web/s').active === 0,
      );
    },
  );

  test('an answer of our own to a request whose body is on its way arrives whole too', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server, { rules: [{ deny: { status: 403, body: page } }] });
    const client = new RawClient(proxy.port);
    client.send(post(`Content-Length: ${SIZE}\r\n`)).send(Buffer.alloc(SIZE));
    expect(bodyOf(await client.rest())).toBe(page);
    expect(client.text).toContain('Connection: close\r\n');
    expect(client.error).toBeNull();
    expect(server.accepted).toBe(0);
  });

  test('an answer that begins before the request is whole may end behind it: both connections go on', async () => {
    const server = await rawServer((socket) => {
      let input = '';
      socket.on('data', (chunk) => {
        input += chunk.toString('latin1');
        if (input.endsWith('\r\n\r\n') && input.startsWith('POST')) {
          socket.write('HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfir');
        } else if (input.endsWith('hello')) {
          input = '';
          socket.write('st!');
        } else if (input.startsWith('GET')) socket.write(OK);
      });
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(post('Content-Length: 5\r\n'));
    await client.until('fir');
    client.send('hello');
    await client.until('first!');
    client.send(getAndClose());
    expect(statusesOf(await client.rest())).toEqual([200, 200]);
    expect(server.accepted).toBe(1);
  });
});

describe('half-closed peers', () => {
  test('a client that has ended its half gets an answer that comes later, whole', async () => {
    let respond: (() => void) | null = null;
    const server = await scriptedServer((_head, socket) => {
      respond = () => socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n');
    });
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port);
    client.socket.end(get());
    await eventually('the request is at the server', () => respond !== null);
    respond!();
    expect(bodyOf(await client.rest())).toBe('2\r\nok\r\n0\r\n\r\n');
    expect(client.error).toBeNull();
  });

  test('a client that ends in the middle of a head is told so', async () => {
    const server = await recorder();
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port);
    client.socket.end('GET / HTTP/1.1\r\nHos');
    expect(statusOf(await client.rest())).toBe(400);
    expect(server.accepted).toBe(0);
  });

  test('a server that ends its half behind its answer: the answer is whole, the connection not used again', async () => {
    const server = await scriptedServer((_head, socket) => socket.end(OK));
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    client.send(getAndClose());
    expect(statusesOf(await client.rest())).toEqual([200, 200]);
    expect(server.accepted).toBe(2);
  });

  test('a server that ends its half instead of answering is a 502', async () => {
    const server = await scriptedServer((_head, socket) => socket.end());
    const proxy = await proxyBefore(server);
    expect(statusesOf(await talk(proxy.port, getAndClose()))).toEqual([502]);
  });
});

describe('RFC 9112 9.2: what a server says without being asked', () => {
  const forged = 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged';

  test('on an idle connection is not the answer of the next request', async () => {
    const server = await saying(OK);
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    const [idle] = server.sockets;
    idle!.write(forged);
    // Idle ones are ended after 4 s anyway.
    await eventually('that connection is ended', () => server.sockets.size === 0, 2_000);
    client.send(getAndClose());
    expect(bodyOf((await client.rest()).slice(OK.length))).toBe('ok');
    expect(server.accepted).toBe(2);
  });

  test('on a new connection is not taken for the answer of a request that was not sent', async () => {
    const server = await rawServer(
      (socket) => void socket.end('HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n'),
    );
    const proxy = await proxyBefore(server);
    // It stands there when the request is sent: that it is about this one is what every client would believe.
    expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(408);
  });
});

/** What a group of tests shares is cleaned up behind the last of them. */
const sharedByTests = () => {
  const cleanups: (() => void | Promise<void>)[] = [];
  afterAll(async () => {
    for (const clean of cleanups.toReversed()) await clean();
  });
  return (clean: () => void | Promise<void>) => void cleanups.push(clean);
};

describe('requests that two readers could understand differently never reach a server', () => {
  const atEnd = sharedByTests();
  let server: RawServer;
  let proxy: Proxy;
  beforeAll(async () => {
    server = await rawServer((socket) => void socket.write(OK), atEnd);
    proxy = await proxyBefore(server, { atEnd });
  });

  const field = (line: string): string => `GET / HTTP/1.1\r\nHost: a\r\n${line}\r\n\r\n`;
  test.each([
    [
      'RFC 9112 6.3: Content-Length beside Transfer-Encoding',
      400,
      post('Content-Length: 5\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    ],
    ['the same, the other way round', 400, post('Transfer-Encoding: chunked\r\nContent-Length: 5\r\n', '0\r\n\r\n')],
    ['RFC 9110 8.6: differing Content-Length', 400, post('Content-Length: 5\r\nContent-Length: 6\r\n', 'hello!')],
    ['RFC 9110 8.6: a list of lengths', 400, post('Content-Length: 5, 5\r\n', 'hello')],
    ['RFC 9110 8.6: a repeated length', 400, post('Content-Length: 5\r\nContent-Length: 5\r\n', 'hello')],
    ...['+5', '-5', '0x5', '5.0', '5 5', '', 'five', '1'.repeat(20), '५'].map(
      (value) =>
        [
          `RFC 9110 8.6: the length ${JSON.stringify(value)}`,
          400,
          post(`Content-Length: ${value}\r\n`, 'hello'),
        ] as const,
    ),
    ['RFC 9112 6.1: an unknown coding', 501, post('Transfer-Encoding: foo, chunked\r\n', '0\r\n\r\n')],
    ['RFC 9112 6.1: compressed chunks', 501, post('Transfer-Encoding: gzip, chunked\r\n', '0\r\n\r\n')],
    [
      'RFC 9112 6.3: codings that do not end in chunked',
      400,
      post('Transfer-Encoding: chunked, gzip\r\n', '0\r\n\r\n'),
    ],
    ['RFC 9112 6.3: a coding alone', 400, post('Transfer-Encoding: gzip\r\n', '0\r\n\r\n')],
    ['RFC 9112 6.1: chunked twice', 400, post('Transfer-Encoding: chunked, chunked\r\n', '0\r\n\r\n')],
    [
      'RFC 9112 6.1: chunked in two fields',
      400,
      post('Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    ],
    ['RFC 9112 6.1: a coding that is none', 400, post('Transfer-Encoding: \x0bchunked\r\n', '0\r\n\r\n')],
    ['a length whose name only CGI would read as one', 400, post('Content_Length: 5\r\n', 'hello')],
    ['a coding whose name only CGI would read as one', 400, post('Transfer_Encoding: chunked\r\n', '0\r\n\r\n')],
    [
      'RFC 9112 6.1: Transfer-Encoding in HTTP/1.0',
      400,
      'POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['RFC 9112 5.1: a space before the colon', 400, field('X : y')],
    ['RFC 9112 5.1: a tab before the colon', 400, field('X\t: y')],
    ['RFC 9112 5.2: a folded line', 400, field('X: y\r\n z')],
    ['RFC 9112 2.2: a folded line before all fields', 400, 'GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n'],
    ['RFC 9112 2.2: a bare CR in a value', 400, field('X: y\rZ: z')],
    ['RFC 9112 2.2: a bare CR in the request line', 400, 'GET /\rHTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 2.2: a bare LF behind a field', 400, 'GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n'],
    ['RFC 9112 2.2: a bare LF behind the request line', 400, 'GET / HTTP/1.1\nHost: a\r\n\r\n'],
    ['RFC 9112 2.2: a bare LF behind the head', 400, 'GET / HTTP/1.1\r\nHost: a\r\n\n'],
    ['RFC 9110 5.5: NUL in a value', 400, field('X: y\0z')],
    ['RFC 9110 5.5: another control in a value', 400, field('X: y\x01z')],
    ['RFC 9110 5.5: DEL in a value', 400, field('X: y\x7fz')],
    ['RFC 9110 5.6.2: a name that is no token', 400, field('X(y): z')],
    ['RFC 9112 5.1: no name', 400, field(': y')],
    ['RFC 9112 5: no colon', 400, field('X')],
    ['RFC 9112 3.2: no Host', 400, 'GET / HTTP/1.1\r\n\r\n'],
    ['RFC 9112 3.2: no Host beside an absolute target', 400, 'GET http://a/ HTTP/1.1\r\n\r\n'],
    ['RFC 9112 3.2: two Hosts', 400, 'GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n'],
    ...['a b', 'a/b', 'a,b', 'user@a', 'a:b', '[::1', 'a#b'].map(
      (value) =>
        [`RFC 9112 3.2: the Host ${JSON.stringify(value)}`, 400, `GET / HTTP/1.1\r\nHost: ${value}\r\n\r\n`] as const,
    ),
    ['RFC 9112 3.2: # in the target', 400, 'GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 3.2: a space in the target', 400, 'GET /a b HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 3.2: a target that is no path', 400, 'GET a HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 3.2: the asterisk for another method than OPTIONS', 400, 'GET * HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 3.2: another scheme', 400, 'GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 3.2: two spaces', 400, 'GET  / HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9110 9.3.6: CONNECT', 405, 'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n'],
    ['RFC 9110 9.1: a method that is no token', 400, 'G@T / HTTP/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9112 2.3: HTTP/0.9', 400, 'GET /\r\n\r\n'],
    ['RFC 9112 2.3: a version in small letters', 400, 'GET / http/1.1\r\nHost: a\r\n\r\n'],
    ['RFC 9110 2.5: HTTP/1.2', 505, 'GET / HTTP/1.2\r\nHost: a\r\n\r\n'],
    ['RFC 9113 3.4: the preface of HTTP/2', 505, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['RFC 9112 3: a request line beyond 8,000 bytes', 414, `GET /${'x'.repeat(8_200)} HTTP/1.1\r\nHost: a\r\n\r\n`],
    ['RFC 6585 5: a field beyond 16 KiB', 431, field(`X: ${'y'.repeat(17_000)}`)],
    ['RFC 6585 5: too many fields', 431, field(Array.from({ length: 200 }, (_, index) => `X${index}: y`).join('\r\n'))],
    ['RFC 9110 7.6.1: more connection options than anybody means', 400, field(`Connection: ${'x, '.repeat(20)}x`)],
  ] as const)('%s: %i', async (_what, status, request) => {
    const text = await talk(proxy.port, request + get('/smuggled'));
    expect(statusesOf(text)).toEqual([status]);
    expect(text).toContain('Connection: close\r\n');
    expect(server.accepted).toBe(0);
  });
});

describe('RFC 9112 7.1: chunks that two readers could understand differently: 400, and the server sees a body cut off', () => {
  test.each([
    ['a size in other digits', 'g\r\nhello\r\n'],
    ['a size with a sign', '+5\r\nhello\r\n'],
    ['a size with 0x', '0x5\r\nhello\r\n'],
    ['a size behind a space', ' 5\r\nhello\r\n'],
    ['a size before a space', '5 \r\nhello\r\n'],
    ['no size', '\r\nhello\r\n'],
    ['a size beyond all bodies', `${'f'.repeat(14)}\r\nhello\r\n`],
    ['zeros before a size, without end', `${'0'.repeat(14)}5\r\nhello\r\n`],
    ['a bare LF behind the size', '5\nhello\r\n'],
    ['a bare CR behind the size', '5\rhello\r\n'],
    ['a bare LF behind the data', '5\r\nhello\n0\r\n\r\n'],
    ['more data than the size', '5\r\nhello!\r\n'],
    ['an extension without a name', '5;\r\nhello\r\n'],
    ['an LF in an extension', '5;a="\n"\r\nhello\r\n'],
    ['an extension without end', `5;a=${'x'.repeat(1_000)}\r\nhello\r\n`],
    ['a bare LF behind the last chunk', '0\n\r\n'],
    ['a bare LF behind the trailers', '0\r\nX: y\r\n\n'],
    ['a trailer that is no field', '0\r\nX y\r\n\r\n'],
    ['a folded trailer', '0\r\nX: y\r\n z\r\n\r\n'],
    ['RFC 9110 6.5.1: a trailer that frames', '0\r\nContent-Length: 5\r\n\r\n'],
    ['trailers without end', `0\r\nX: ${'y'.repeat(9_000)}\r\n\r\n`],
  ])('%s', async (_what, rest) => {
    const server = await recorder('never');
    const proxy = await proxyBefore(server);
    const client = new RawClient(proxy.port).send(post('Transfer-Encoding: chunked\r\n', '2\r\nhi\r\n'));
    await eventually('the first chunk is at the server', () => server.seen.endsWith('hi\r\n'));
    expect(statusesOf(await client.send(rest + get('/smuggled')).rest())).toEqual([400]);
    await eventually('the server is left', () => server.closed === 1);
    const body = bodyOf(server.seen);
    expect(body.startsWith('2\r\nhi\r\n')).toBe(true);
    expect(body).not.toMatch(/0\r\n\r\n$|smuggled/);
    expect(rest.startsWith(body.slice('2\r\nhi\r\n'.length))).toBe(true);
  });
});

test('a chunk that is not valid, when the answer has begun: no page of ours gets into it, the client is reset', async () => {
  const server = await saying('HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\npart');
  const proxy = await proxyBefore(server);
  const client = new RawClient(proxy.port).send(post('Transfer-Encoding: chunked\r\n', '2\r\nhi\r\n'));
  await client.until('part');
  expect(await client.send('xyz\r\n').rest()).toMatch(/part$/);
  expect(client.error?.code).toBe('ECONNRESET');
});

describe('answers that two readers could understand differently are a 502, and nothing of them is passed on', () => {
  const atEnd = sharedByTests();
  let proxy: Proxy;
  let says = '';
  beforeAll(async () => {
    const server = await scriptedServer((_head, socket) => void socket.write(Buffer.from(says, 'latin1')), atEnd);
    proxy = await proxyBefore(server, { atEnd });
  });

  const answer = (fields: string): string => `HTTP/1.1 200 OK\r\n${fields}\r\n\r\nevil`;
  test.each([
    [
      'RFC 9112 6.3: Content-Length beside Transfer-Encoding',
      answer('Content-Length: 4\r\nTransfer-Encoding: chunked'),
    ],
    ['RFC 9112 6.3: differing Content-Length', answer('Content-Length: 4\r\nContent-Length: 5')],
    ['RFC 9112 6.3: a list of lengths', answer('Content-Length: 4, 4')],
    ['RFC 9110 8.6: a length with a sign', answer('Content-Length: +4')],
    ['RFC 9110 8.6: an empty length', answer('Content-Length: ')],
    ['RFC 9112 6.1: a coding that nobody asked for', answer('Transfer-Encoding: gzip, chunked')],
    ['RFC 9112 6.3: a coding that is not chunked', answer('Transfer-Encoding: identity')],
    [
      'RFC 9112 6.1: Transfer-Encoding in HTTP/1.0',
      'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n',
    ],
    ['RFC 9112 5.1: a space before the colon', answer('X : y\r\nContent-Length: 4')],
    ['RFC 9112 5.2: a folded line', answer('X: y\r\n z\r\nContent-Length: 4')],
    ['RFC 9112 2.2: a bare CR in a value', answer('X: y\rz\r\nContent-Length: 4')],
    ['RFC 9112 2.2: a bare LF', answer('X: y\nContent-Length: 4')],
    ['RFC 9110 5.5: NUL in a value', answer('X: y\0\r\nContent-Length: 4')],
    ['RFC 9110 5.6.2: a name that is no token', answer('X(): y\r\nContent-Length: 4')],
    ['RFC 9112 5: no colon', answer('X\r\nContent-Length: 4')],
    ['RFC 9112 4: a control in the reason', 'HTTP/1.1 200 O\0K\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 4: no space behind the status', 'HTTP/1.1 200OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 4: a status of two digits', 'HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 4: a status of four digits', 'HTTP/1.1 2000 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9110 15: a status beyond 599', 'HTTP/1.1 600 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9110 15: a status below 100', 'HTTP/1.1 099 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 2.3: another version', 'HTTP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 2.3: another protocol', 'ICY 200 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['RFC 9112 2.3: HTTP/0.9', '<html>evil</html>'],
    ['RFC 9110 8.6: an interim answer with a length', `HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\n\r\nevil${OK}`],
    [
      'RFC 9112 6.1: a chunked interim answer',
      `HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${OK}`,
    ],
    [
      'RFC 9110 15.2.2: a switch of protocols that nobody asked for',
      'HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nevil',
    ],
    ['a head beyond 16 KiB', answer(`X: ${'y'.repeat(17_000)}`)],
    [
      'a malformed chunk right behind the head',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\nzz\r\n',
    ],
  ])('%s', async (_what, text) => {
    says = text;
    const got = await talk(proxy.port, get());
    expect(statusesOf(got)).toEqual([502]);
    expect(got).not.toContain('evil');
  });
});

describe('a body that was cut off is never passed on as a whole one', () => {
  const head = 'HTTP/1.1 200 OK\r\n';
  const chunked = `${head}Transfer-Encoding: chunked\r\n\r\n`;
  test.each([
    ['RFC 9112 8: an answer shorter than its length', `${head}Content-Length: 100\r\n\r\n`, 'part', 'end'],
    ['the same by a reset', `${head}Content-Length: 100\r\n\r\n`, 'part', 'reset'],
    ['RFC 9112 8: an answer that ends within a chunk', chunked, '9\r\npart', 'end'],
    ['an answer that ends within a chunk size', chunked, '4\r\npart\r\n1', 'end'],
    ['an answer without its last chunk', chunked, '4\r\npart\r\n', 'end'],
    ['an answer that ends within its last chunk', chunked, '4\r\npart\r\n0\r\n', 'end'],
    ['an answer that ends within its trailers', chunked, '4\r\npart\r\n0\r\nX: y\r\n', 'end'],
    ['an answer until the end that is reset', `${head}\r\n`, 'part', 'reset'],
  ])('%s: its client is reset', async (_what, first, part, how) => {
    const server = await scriptedServer((_head, socket) => {
      socket.write(first);
      const [beforePart = ''] = part.split('part');
      socket.write(`${beforePart}part`);
      cutOff = () => {
        socket.write(part.slice(beforePart.length + 'part'.length));
        if (how === 'reset') socket.resetAndDestroy();
        else socket.end();
      };
    });
    let cutOff = () => {};
    const proxy = await proxyBefore(server);
    for (const request of [get(), 'GET / HTTP/1.0\r\n\r\n']) {
      const client = new RawClient(proxy.port).send(request);
      await client.until('part');
      cutOff();
      await client.rest();
      expect(client.error?.code).toBe('ECONNRESET');
    }
  });

  test.each([
    ['with a length', 'Content-Length: 100\r\n', 'part'],
    ['in chunks', 'Transfer-Encoding: chunked\r\n', '4\r\npart\r\n'],
    ['in chunks, within the last one', 'Transfer-Encoding: chunked\r\n', '4\r\npart\r\n0\r\n'],
  ])('a request %s: the server sees it end in the middle, however the client left', async (_what, fields, part) => {
    for (const how of ['end', 'reset']) {
      const server = await recorder('never');
      const proxy = await proxyBefore(server);
      const client = new RawClient(proxy.port).send(post(fields, part));
      await eventually('part is at the server', () => server.seen.includes('part'));
      if (how === 'end') client.socket.end();
      else client.socket.resetAndDestroy();
      await eventually('the server is left', () => server.closed === 1);
      expect(part.startsWith(bodyOf(server.seen))).toBe(true);
    }
  });

  test('an answer that is cut off before it began may still be an error page', async () => {
    const server = await scriptedServer((_head, socket) => socket.end('HTTP/1.1 200 OK\r\nContent-Le'));
    const proxy = await proxyBefore(server);
    expect(statusesOf(await talk(proxy.port, getAndClose()))).toEqual([502]);
  });
});

describe('RFC 9110 7.6.1: what belongs to one connection does not cross', () => {
  test('in a request: what Connection names, and what always belongs to one', async () => {
    const seen = await seenFor(
      get(
        '/',
        'Connection: X-One, close\r\nConnection: x-TWO\r\nX-One: 1\r\nX-Two: 2\r\nx-two: 3\r\nKeep-Alive: timeout=5\r\n' +
          'Proxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: foo/2\r\nX-Kept: 4\r\n',
      ),
    );
    expect(seen).toMatch(/\r\nX-Kept: 4\r\n/);
    expect(seen).not.toMatch(/^(?:connection|x-one|x-two|keep-alive|proxy-connection|te|upgrade):/im);
  });

  test('in an answer', async () => {
    const server = await saying(
      'HTTP/1.1 200 OK\r\nConnection: X-One, keep-alive\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n' +
        'Upgrade: h2c\r\nX-Kept: 4\r\nContent-Length: 2\r\n\r\nok',
    );
    const proxy = await proxyBefore(server);
    const text = await new RawClient(proxy.port).send(get()).until('ok');
    expect(text).toBe('HTTP/1.1 200 OK\r\nX-Kept: 4\r\nContent-Length: 2\r\n\r\nok');
  });

  test.each([
    ['Host', 'Host: shop.example'],
    ['Content-Length', 'Content-Length: 5'],
    ['X-Forwarded-For', 'X-Forwarded-For: 127.0.0.1'],
    ['X-Forwarded-Proto', 'X-Forwarded-Proto: http'],
    ['Cookie', 'Cookie: a=b'],
    ['Authorization', 'Authorization: Basic YTpi'],
  ])('nobody gets rid of %s by naming it', async (name, line) => {
    const fields = `Content-Length: 5\r\nCookie: a=b\r\nAuthorization: Basic YTpi\r\nConnection: ${name}\r\n`;
    expect(await seenFor(post(fields, 'hello'), {}, 'hello')).toContain(`\r\n${line}\r\n`);
  });

  test.each(['foo', 'h2c', 'TLS/1.0', 'websocket, foo'])(
    'RFC 9110 7.8: an upgrade to %s is not passed on, and the request is answered as if there were none',
    async (protocol) => {
      const server = await recorder();
      const proxy = await proxyBefore(server);
      const fields = `Connection: Upgrade, HTTP2-Settings\r\nUpgrade: ${protocol}\r\nHTTP2-Settings: x\r\n`;
      const client = new RawClient(proxy.port).send(get('/', fields));
      await client.until('ok');
      expect(server.seen).not.toMatch(/upgrade|http2-settings/i);
      client.send(getAndClose());
      expect(statusesOf(await client.rest())).toEqual([200, 200]);
    },
  );
});

describe('X-Forwarded-For and X-Forwarded-Proto', () => {
  const came = 'X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nX-Forwarded-Proto: https\r\n';
  const linesOf = (seen: string) => seen.match(/^x-forwarded-.*$/gim);

  test.each([
    [
      'add',
      ['X-Forwarded-For: 1.2.3.4', 'X-Forwarded-For: 5.6.7.8', 'X-Forwarded-For: 127.0.0.1', 'X-Forwarded-Proto: http'],
    ],
    ['replace', ['X-Forwarded-For: 127.0.0.1', 'X-Forwarded-Proto: http']],
    ['none', ['X-Forwarded-For: 1.2.3.4', 'X-Forwarded-For: 5.6.7.8', 'X-Forwarded-Proto: http']],
  ] as const)('forwardedFor: %s', async (forwardedFor, lines) => {
    expect(linesOf(await seenFor(get('/', came), { frontend: { forwardedFor } }))).toEqual(lines);
  });

  test('names that only CGI would read as these do not come through', async () => {
    const seen = await seenFor(get('/', 'X_Forwarded_For: 1.2.3.4\r\nX-Forwarded_Proto: https\r\n'));
    expect(linesOf(seen)).toEqual(['X-Forwarded-For: 127.0.0.1', 'X-Forwarded-Proto: http']);
    expect(seen).not.toContain('1.2.3.4');
  });
});
