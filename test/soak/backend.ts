/**
 * A server that is to be killed: HTTP, WebSockets and plain TCP, telling with each answer which run of it gave it.
 * `node test/soak/backend.ts ID HTTP_PORT TCP_PORT`
 */
import { createHash } from 'node:crypto';
import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { echoFrames, switchingProtocols } from '../webSocketFrames.ts';
import { piecesOf } from './pattern.ts';

const [id, httpPort, tcpPort] = process.argv.slice(2);
const HOST = '127.0.0.1';
/** Longer than the proxy keeps a connection: it is never this server that closes one between two requests. */
const KEEP_ALIVE_MS = 600_000;

/** `/bytes/LENGTH/AT`, `?chunked` without a Content-Length, `?after=MS` for an answer that takes time. */
const sendBytes = async (request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> => {
  const [, , length, at] = url.pathname.split('/').map(Number);
  if (!url.searchParams.has('chunked')) response.setHeader('Content-Length', length!);
  response.writeHead(200);
  if (request.method !== 'HEAD') {
    for (const piece of piecesOf(at!, length!)) {
      if (!response.write(piece)) await drained(response);
      if (response.destroyed) return;
    }
  }
  response.end();
};

const drained = (response: ServerResponse): Promise<void> =>
  new Promise((done) => {
    const over = () => {
      response.off('drain', over);
      response.off('close', over);
      done();
    };
    response.on('drain', over);
    response.on('close', over);
  });

/** `/digest`: length and CRC-32 of what was sent, or with `?sha256` its SHA-256. `?pause=MS`: it is read slowly. */
const sendDigest = (request: IncomingMessage, response: ServerResponse, { searchParams }: URL): void => {
  const hash = searchParams.has('sha256') ? createHash('sha256') : null;
  const pauseMs = Number(searchParams.get('pause'));
  let length = 0;
  let sum = 0;
  request.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (hash) hash.update(chunk);
    else sum = crc32(chunk, sum);
    if (pauseMs === 0) return;
    request.pause();
    setTimeout(() => request.resume(), pauseMs);
  });
  request.on('end', () => response.end(`${length} ${hash ? hash.digest('hex') : sum}`));
};

const answer = (request: IncomingMessage, response: ServerResponse): void => {
  const url = new URL(request.url!, 'http://any');
  response.setHeader('X-Server', id!);
  if (url.pathname.startsWith('/bytes/')) {
    const afterMs = Number(url.searchParams.get('after'));
    const begin = () => void sendBytes(request, response, url);
    if (afterMs > 0) setTimeout(begin, afterMs);
    else begin();
  } else if (url.pathname === '/digest') sendDigest(request, response, url);
  else if (url.pathname === '/echo') request.pipe(response);
  else if (url.pathname === '/silent') request.pause();
  else response.end('ok');
};

const http = createHttpServer({ keepAliveTimeout: KEEP_ALIVE_MS, requestTimeout: 0 }, answer);
http.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
  socket.on('error', () => socket.destroy());
  socket.write(switchingProtocols(request.headers['sec-websocket-key']!, `X-Server: ${id}\r\n`));
  const reader = echoFrames(socket);
  socket.on('data', (chunk: Buffer) => reader.push(chunk));
  socket.on('end', () => socket.end());
  if (head.length > 0) reader.push(head);
});

const tcp = createServer((socket) => {
  socket.on('error', () => socket.destroy());
  socket.write(`${id}\n`);
  socket.pipe(socket);
});

http.listen({ port: Number(httpPort), host: HOST, backlog: 4_096 }, () =>
  tcp.listen({ port: Number(tcpPort), host: HOST, backlog: 4_096 }, () => process.send?.('listening')),
);
// Nobody is left to be served.
process.on('disconnect', () => process.exit(0));
