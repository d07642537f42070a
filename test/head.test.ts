/** One test a rule of RFC 9110 and RFC 9112, and the comparison with Node's own parser. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo } from 'node:net';
import * as fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { Body } from '../src/proxy/framing.ts';
import { nameOf, parseRequest, parseResponse, requestHeadFor, responseHeadFor, valueOf } from '../src/proxy/head.ts';
import type { Fields, RequestHead } from '../src/proxy/head.ts';

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');
const request = (text: string) => parseRequest(bytes(text));

const accepted = (text: string): RequestHead => {
  const head = request(text);
  if (typeof head !== 'object') throw new Error(`${JSON.stringify(text)} gives ${head}`);
  return head;
};

const fieldsOf = (fields: Fields): string[] =>
  Array.from({ length: fields.count }, (_, index) => [nameOf(fields, index), valueOf(fields, index)]).flat();

const H = 'Host: a\r\n';

describe('refusals', () => {
  test.each<[string, number, string]>([
    [
      '9112 6.3: Content-Length beside Transfer-Encoding',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
    ],
    [
      '9112 6.3: differing Content-Lengths',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nContent-Length: 2\r\n\r\n`,
    ],
    ['9112 6.3: repeated Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nContent-Length: 1\r\n\r\n`],
    ['9112 6.3: a list of Content-Lengths', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 1, 1\r\n\r\n`],
    ['9110 8.6: a signed Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: +1\r\n\r\n`],
    ['9110 8.6: a hexadecimal Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 0x1\r\n\r\n`],
    ['9110 8.6: an empty Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: \r\n\r\n`],
    [
      '9110 8.6: a Content-Length past all counting',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 99999999999999999999\r\n\r\n`,
    ],
    ['9112 6.1: Transfer-Encoding in HTTP/1.0', 400, `POST / HTTP/1.0\r\n${H}Transfer-Encoding: chunked\r\n\r\n`],
    ['9112 6.1: chunked not last', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked, gzip\r\n\r\n`],
    [
      '9112 6.1: an encoding that we do not know',
      501,
      `POST / HTTP/1.1\r\n${H}Transfer-Encoding: gzip, chunked\r\n\r\n`,
    ],
    ['9112 6.1: Transfer-Encoding: identity', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: identity\r\n\r\n`],
    [
      '9112 6.1: two Transfer-Encodings',
      400,
      `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n`,
    ],
    ['9112 5.1: a space before the colon', 400, `GET / HTTP/1.1\r\n${H}X : 1\r\n\r\n`],
    ['9112 5.1: a name that is no token', 400, `GET / HTTP/1.1\r\n${H}X(y): 1\r\n\r\n`],
    ['9112 5.1: an empty name', 400, `GET / HTTP/1.1\r\n${H}: 1\r\n\r\n`],
    ['9112 5.2: obs-fold', 400, `GET / HTTP/1.1\r\n${H}X: 1\r\n 2\r\n\r\n`],
    ['9112 2.2: white space before the first field', 400, `GET / HTTP/1.1\r\n ${H}\r\n`],
    ['9112 2.2: a bare CR in a value', 400, `GET / HTTP/1.1\r\n${H}X: 1\r2\r\n\r\n`],
    ['9112 2.2: a bare LF behind a field', 400, `GET / HTTP/1.1\r\n${H}X: 1\n\r\n`],
    ['9112 2.2: a bare LF behind the request line', 400, `GET / HTTP/1.1\n${H}\r\n`],
    ['9112 2.2: a bare LF as the empty line', 400, `GET / HTTP/1.1\r\n${H}\n`],
    ['9110 5.5: NUL in a value', 400, `GET / HTTP/1.1\r\n${H}X: \0\r\n\r\n`],
    ['9110 5.5: a control in a value', 400, `GET / HTTP/1.1\r\n${H}X: \x0b\r\n\r\n`],
    ['9110 5.5: DEL in a value', 400, `GET / HTTP/1.1\r\n${H}X: \x7f\r\n\r\n`],
    ['9112 3.2: no Host', 400, 'GET / HTTP/1.1\r\n\r\n'],
    ['9112 3.2: two Hosts', 400, `GET / HTTP/1.1\r\n${H}${H}\r\n`],
    ['9112 3.2: a list as Host', 400, 'GET / HTTP/1.1\r\nHost: a, b\r\n\r\n'],
    ['9112 3.2: a Host with a user', 400, 'GET / HTTP/1.1\r\nHost: u@a\r\n\r\n'],
    ['9112 3.2: a Host with a path', 400, 'GET / HTTP/1.1\r\nHost: a/b\r\n\r\n'],
    ['9112 3.2: a Host whose port is no number', 400, 'GET / HTTP/1.1\r\nHost: a:b\r\n\r\n'],
    ['9112 3.2: a fragment in the target', 400, `GET /#x HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a space in the target', 400, `GET /a b HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a byte above ASCII in the target', 400, `GET /\xe4 HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2.3: authority form without CONNECT', 400, `GET a:80 HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2.4: * without OPTIONS', 400, `GET * HTTP/1.1\r\n${H}\r\n`],
    ['9110 4.2.4: a user in an absolute target', 400, `GET http://u@a/ HTTP/1.1\r\n${H}\r\n`],
    ['9110 9.3.6: CONNECT', 405, 'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n'],
    ['9112 3: two spaces', 400, `GET  / HTTP/1.1\r\n${H}\r\n`],
    ['9112 3: HTTP/0.9', 400, 'GET /\r\n'],
    ['9112 2.3: a version in lower case', 400, `GET / http/1.1\r\n${H}\r\n`],
    ['9112 2.3: HTTP/2.0', 505, `GET / HTTP/2.0\r\n${H}\r\n`],
    ['9110 15.5.15: a target of 9,000 bytes', 414, `GET /${'x'.repeat(9_000)} HTTP/1.1\r\n${H}\r\n`],
    ['6585 5: a head above 16 KiB', 431, `GET / HTTP/1.1\r\n${H}X: ${'x'.repeat(17_000)}\r\n\r\n`],
    ['6585 5: more than 100 fields', 431, `GET / HTTP/1.1\r\n${H}${'X: 1\r\n'.repeat(101)}\r\n`],
  ])('RFC %s is answered with %i', (_rule, status, text) => {
    expect(request(text)).toBe(status);
  });
});

describe('what is read', () => {
  test('RFC 9112 2.2: empty lines before the request line are ignored', () => {
    expect(accepted(`\r\n\r\nGET /x HTTP/1.1\r\n${H}\r\n`)).toMatchObject({ method: 'GET', path: '/x' });
  });

  test('RFC 9112 3.2.2: of an absolute target the authority counts, not Host', () => {
    const head = accepted('GET HTTP://Real.example:8080?q HTTP/1.1\r\nHost: other\r\n\r\n');
    expect(head).toMatchObject({ host: 'real.example', path: '/?q', authority: 'Real.example:8080' });
  });

  test('RFC 9112 3.2.4: OPTIONS for an absolute target without path and query goes on as *', () => {
    const head = accepted(`OPTIONS http://a.example:8001 HTTP/1.1\r\n${H}\r\n`);
    const sent = requestHeadFor(head, {
      clientAddress: '::1',
      scheme: 'http',
      upgrade: false,
      defaultHost: '127.0.0.1:80',
    }).toString();
    expect(sent).toMatch(/^OPTIONS \* HTTP\/1\.1\r\nHost: a\.example:8001\r\n/);
  });

  test.each([
    ['a.example:80', 'a.example'],
    ['A.Example', 'a.example'],
    ['[::1]:8080', '[::1]'],
    ['', ''],
  ])('RFC 9110 7.2: Host %j is the host %j', (host, expected) => {
    expect(accepted(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`).host).toBe(expected);
  });

  test('RFC 9112 9.3: HTTP/1.1 is kept alive unless closed, HTTP/1.0 only when asked', () => {
    const keepAlive = (version: string, connection: string) =>
      accepted(`GET / HTTP/${version}\r\n${H}Connection: ${connection}\r\n\r\n`).keepAlive;
    expect(keepAlive('1.1', 'x')).toBe(true);
    expect(keepAlive('1.1', 'x, Close')).toBe(false);
    expect(keepAlive('1.0', 'x')).toBe(false);
    expect(keepAlive('1.0', 'Keep-Alive')).toBe(true);
    expect(keepAlive('1.0', 'keep-alive, close')).toBe(false);
  });

  test('RFC 9112 5: white space around a value is not its part', () => {
    expect(fieldsOf(accepted('GET / HTTP/1.1\r\nHost:\t a \t\r\n\r\n').fields)).toEqual(['Host', 'a']);
  });

  test('RFC 9110 7.6.1: framing, Host and what we add cannot be removed by naming them in Connection', () => {
    const head = accepted(
      `POST / HTTP/1.1\r\n${H}Content-Length: 0\r\nX-Forwarded-For: 1\r\nConnection: host, content-length, x-forwarded-for\r\n\r\n`,
    );
    const sent = requestHeadFor(head, {
      clientAddress: '::1',
      scheme: 'http',
      upgrade: false,
      defaultHost: '127.0.0.1:80',
    }).toString();
    expect(sent).toContain(`${H}Content-Length: 0\r\nX-Forwarded-For: 1\r\n`);
  });
});

describe('responses', () => {
  const framing = (text: string, method = 'GET') => {
    const head = parseResponse(bytes(text), method);
    return typeof head === 'object' ? head.framing : head;
  };

  test.each([
    ['HTTP/1.1 200 OK\r\n\r\n', 'untilClose'],
    ['HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', 'none'],
    ['HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n', 'length'],
    ['HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n', 'chunked'],
    ['HTTP/1.1 204 No\r\n\r\n', 'none'],
    ['HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n', 'none'],
  ])('RFC 9112 6.3: %j has the framing %s', (text, expected) => {
    expect(framing(text)).toBe(expected);
    expect(framing(text, 'HEAD')).toBe('none');
  });

  test.each([
    ['9112 4: a status that is no three digits', 'HTTP/1.1 2e2 OK\r\n\r\n'],
    ['9112 4: a status below 100', 'HTTP/1.1 099 OK\r\n\r\n'],
    ['9112 4: a control in the reason', 'HTTP/1.1 200 O\0\r\n\r\n'],
    ['9112 6.1: Transfer-Encoding in HTTP/1.0', 'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'],
    ['9112 6.3: differing lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n'],
  ])('RFC %s is a 502', (_rule, text) => {
    expect(framing(text)).toBe(502);
  });

  test('RFC 9110 7.6.1: hop-by-hop fields are left out, others stay as they are', () => {
    const head = parseResponse(
      bytes('HTTP/1.0 200 Fine\r\nX:  a \r\nKeep-Alive: 5\r\nConnection: Y\r\nY: 1\r\nZ: \xe4\r\n\r\n'),
      'GET',
    );
    if (typeof head !== 'object') throw new Error(String(head));
    expect(responseHeadFor(head, 'Connection: close\r\n', false).toString('latin1')).toBe(
      'HTTP/1.1 200 Fine\r\nX:  a \r\nZ: \xe4\r\nConnection: close\r\n\r\n',
    );
  });
});

const CORPUS = [
  'GET / HTTP/1.1\r\nHost: a\r\n\r\n',
  'GET /a?b=c&d HTTP/1.0\r\nConnection: keep-alive\r\nUser-Agent: x/1\r\n\r\n',
  'POST /form HTTP/1.1\r\nHost: shop.example:80\r\nContent-Length: 5\r\n\r\nhello',
  'PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\n',
  'PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked \r\nTE: trailers\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n',
  'OPTIONS * HTTP/1.1\r\nHost: \r\n\r\n',
  'GET http://[::1]:80/x?y HTTP/1.1\r\nHost: a\r\nConnection: close, X\r\nX: 1\r\n\r\n',
  '\r\nDELETE /~a;b/%20 HTTP/1.1\r\nhost:\ta\t\r\nAccept: */*\r\nX-E: \xe4\r\n\r\n',
  'GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  'HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n',
];

test('a head split at any byte gives more, and then the same', () => {
  const texts = [...CORPUS, 'GET / HTTP/2.0\r\nHost: a\r\n\r\n', 'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n'];
  fc.assert(
    fc.property(fc.constantFrom(...texts), fc.nat(1_000), (text, cut) => {
      const whole = request(text);
      const length = typeof whole === 'object' ? whole.length : text.indexOf('\r\n\r\n') + 4;
      const part = request(text.slice(0, cut % length));
      // Refused at once or when it is complete, but always with the same status.
      expect(typeof whole === 'object' ? ['more'] : ['more', whole]).toContain(part);
    }),
    { numRuns: 1_500, seed: 1 },
  );
});

type Reading = { method: string; url: string; fields: string[]; payload: string; complete: boolean };

/** What Node's llhttp makes of these bytes: one reading for each, or the code of its refusal. */
const readByNode = async (messages: Buffer[]): Promise<(Reading | string)[]> => {
  const readings = new Map<number, Reading>();
  const refusals = new Map<number, string>();
  const server = createServer({ keepAlive: false, requestTimeout: 0 }, (incoming, response) => {
    const port = incoming.socket.remotePort ?? 0;
    const { method = '', url = '', rawHeaders } = incoming;
    const reading: Reading = { method, url, fields: rawHeaders, payload: '', complete: false };
    readings.set(port, reading);
    incoming.on('data', (chunk: Buffer) => (reading.payload += chunk.toString('latin1')));
    incoming.on('error', () => {});
    incoming.on('end', () => {
      reading.complete = true;
      response.setHeader('Connection', 'close');
      response.end();
    });
  });
  for (const event of ['checkContinue', 'checkExpectation'])
    server.on(event, (incoming, response) => server.emit('request', incoming, response));
  server.on('clientError', (error: Error & { code?: string }, socket) => {
    const { remotePort } = socket as unknown as { remotePort?: number };
    refusals.set(remotePort ?? 0, error.code ?? 'UNKNOWN');
    socket.destroy();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const results: (Reading | string)[] = [];
  const one = async (message: Buffer): Promise<Reading | string> => {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    await once(socket, 'connect');
    const { localPort = 0 } = socket;
    socket.on('error', () => {});
    const closed = new Promise((done) => socket.once('close', done));
    socket.resume().once('end', () => socket.destroy());
    socket.end(message);
    await closed;
    const result = refusals.get(localPort) ?? readings.get(localPort) ?? 'NOTHING';
    // The kernel gives the port to a later one.
    refusals.delete(localPort);
    readings.delete(localPort);
    return result;
  };
  let next = 0;
  const lane = async () => {
    while (next < messages.length) {
      const index = next++;
      results[index] = await one(messages[index]!);
    }
  };
  await Promise.all(Array.from({ length: 24 }, lane));
  return results;
};

/** Pieces that parsers have read differently. */
const TRICKS = [
  '\r',
  '\n',
  '\r\n',
  ' ',
  '\t',
  '\0',
  '\x0b',
  '\x7f',
  '\x80',
  '\xa0',
  '\xff',
  ':',
  ',',
  ';',
  '=',
  '"',
  '/',
  '//',
  '?',
  '%',
  '@',
  '*',
  '[',
  ']',
  '0',
  '1',
  '5',
  'a',
  'G',
  '+',
  '-',
  '_',
  'Content-Length: 5\r\n',
  'Content-Length: 0\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Transfer-Encoding: identity\r\n',
  'chunked',
  'Connection: close\r\n',
  'Connection: content-length\r\n',
  'Upgrade: h2c\r\n',
  'Host: b\r\n',
  'HTTP/1.0',
  'HTTP/1.1',
  'http://b',
  'https://c:1/',
  ';a',
  ';a=b',
  ';a="b"',
  '; a',
  ';=',
  'X: 1\r\n',
  'X-_: \t\r\n',
  'Keep-Alive: 1\r\n',
];

test('whatever is accepted, llhttp accepts and reads the same: corpus and seeded mutations', async () => {
  let seed = 20_261;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((seed / 0x1_0000_0000) * below);
  };
  const mutate = (text: string): string => {
    for (let count = 1 + random(3); count > 0; count--) {
      const at = random(text.length + 1);
      const trick = TRICKS[random(TRICKS.length)]!;
      const kind = random(4);
      if (kind === 0) text = text.slice(0, at) + text.slice(at + 1 + random(4));
      else if (kind === 1) text = text.slice(0, at) + trick + text.slice(at + trick.length);
      else if (kind === 2) text = text.slice(0, at) + trick + text.slice(at);
      else {
        // Whole lines are where the tricky fields belong.
        const line = text.indexOf('\r\n', at);
        text = line === -1 ? text + trick : text.slice(0, line + 2) + trick + text.slice(line + 2);
      }
    }
    return text;
  };
  type Ours = { message: Buffer; reading: Reading };
  const ours: Ours[] = [];
  const consider = (text: string) => {
    const input = bytes(text);
    const head = parseRequest(input);
    if (typeof head !== 'object') return;
    const body = new Body(head.framing, head.contentLength);
    let payload = '';
    const rest = input.subarray(head.length);
    const taken = body.take(rest, (start, end) => (payload += rest.toString('latin1', start, end)));
    if (body.broken) return;
    ours.push({
      message: input.subarray(0, head.length + taken),
      reading: {
        method: head.method,
        url: input.toString('latin1', head.targetStart, head.targetEnd),
        fields: fieldsOf(head.fields),
        payload,
        complete: body.done,
      },
    });
  };
  for (const text of CORPUS) consider(text);
  expect(ours).toHaveLength(CORPUS.length);
  for (let count = 0; count < 24_000; count++) consider(mutate(CORPUS[random(CORPUS.length)]!));
  expect(ours.length).toBeGreaterThan(2_000);
  const theirs = await readByNode(ours.map(({ message }) => message));
  const differences = ours.flatMap(({ message, reading }, index) => {
    const their = theirs[index]!;
    // llhttp knows a list of methods; RFC 9110 section 9.1 lets others be passed on.
    if (their === 'HPE_INVALID_METHOD') return [];
    // Cut off in the body: the head was read, and both wait for more.
    if (!reading.complete && their === 'HPE_INVALID_EOF_STATE') return [];
    if (JSON.stringify(their) === JSON.stringify(reading)) return [];
    return [{ message: message.toString('latin1'), ours: reading, theirs: their }];
  });
  const kinds = new Map(differences.map((each) => [JSON.stringify(each.theirs).slice(0, 40), each]));
  expect([...kinds.values()]).toEqual([]);
});
