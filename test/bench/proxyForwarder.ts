/**
 * Forwarding as it is usually written for Node.js, for `bench:proxy`: with the package `http-proxy`, or with undici's
 * pool behind `node:http`. Arguments: which, the ports to listen on and those of the servers, and the certificate.
 */
import { readFileSync } from 'node:fs';
import { Agent, createServer } from 'node:http';
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import httpProxy from 'http-proxy';
import { Pool } from 'undici';
import type { Dispatcher } from 'undici';
import type { Origin } from './proxyOrigin.ts';
import { CIPHER_SUITE } from './proxyConfigs.ts';
import type { Ports } from './proxyConfigs.ts';

type OnUpgrade = (request: IncomingMessage, socket: Duplex, head: Buffer) => void;
type Forwarder = {
  forward(request: IncomingMessage, response: ServerResponse, api: boolean): void;
  upgrade: OnUpgrade;
};

/** As many as a proxy's clients at most; the others wait. */
const CONNECTIONS = 256;
const KEEP_ALIVE_MS = 3_600_000;
const BACKLOG = 4096;

const [kind, portsText, originText, pem] = process.argv.slice(2) as [string, string, string, string];
const ports = JSON.parse(portsText) as Ports;
const origin = JSON.parse(originText) as Origin;
const urlOf = (port: number): string => `http://127.0.0.1:${port}`;

const badGateway = (response: ServerResponse, error: Error): void => {
  if (response.headersSent) response.destroy();
  else response.writeHead(502, { 'content-type': 'text/plain' }).end(error.message);
};

const withHttpProxy = (): Forwarder => {
  const agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS, maxFreeSockets: CONNECTIONS });
  const proxy = httpProxy.createProxyServer({ agent, xfwd: true });
  proxy.on('error', (error, _request, response) => {
    if ('writeHead' in response) badGateway(response, error);
    else response.destroy();
  });
  const sockets = httpProxy.createProxyServer({ target: urlOf(origin.webSocket), ws: true, xfwd: true });
  sockets.on('error', (_error, _request, response) => response.destroy());
  return {
    forward: (request, response, api) => {
      // Its `xfwd` sets it, behind what the client sent.
      delete request.headers['x-forwarded-proto'];
      proxy.web(request, response, { target: urlOf(api ? origin.api : origin.web) });
    },
    upgrade: (request, socket, head) => sockets.ws(request, socket, head),
  };
};

/** RFC 9110 section 7.6.1, and what a client's framing says. */
const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'proxy-connection', 'te', 'transfer-encoding', 'upgrade']);

const withUndici = (): Forwarder => {
  const pools = [origin.web, origin.api].map(
    (port) => new Pool(urlOf(port), { connections: CONNECTIONS, keepAliveTimeout: KEEP_ALIVE_MS, pipelining: 1 }),
  );
  const socketPool = new Pool(urlOf(origin.webSocket));
  const endToEnd = (request: IncomingMessage): Record<string, string | string[]> => {
    const headers: Record<string, string | string[]> = {};
    for (const name in request.headers) if (!HOP_BY_HOP.has(name)) headers[name] = request.headers[name]!;
    const before = request.headers['x-forwarded-for'];
    const client = request.socket.remoteAddress!;
    headers['x-forwarded-for'] = before === undefined ? client : `${String(before)}, ${client}`;
    return headers;
  };
  const upgrade = async (request: IncomingMessage, socket: Duplex): Promise<void> => {
    const headers = endToEnd(request);
    const upgraded = await socketPool.upgrade({ path: request.url!, protocol: 'websocket', headers });
    const lines = Object.entries(upgraded.headers).map(([name, value]) => `${name}: ${String(value)}\r\n`);
    socket.write(`HTTP/1.1 101 Switching Protocols\r\n${lines.join('')}\r\n`);
    socket.on('error', () => upgraded.socket.destroy());
    upgraded.socket.on('error', () => socket.destroy());
    socket.pipe(upgraded.socket).pipe(socket);
  };
  return {
    forward: (request, response, api) => {
      request.headers['x-forwarded-proto'] = 'encrypted' in request.socket ? 'https' : 'http';
      const { method = 'GET', url = '/' } = request;
      const hasBody = request.headers['content-length'] !== undefined || 'transfer-encoding' in request.headers;
      let controller: Dispatcher.DispatchController | null = null;
      response.on('drain', () => controller?.resume());
      response.on('close', () => {
        if (!response.writableFinished) controller?.abort(new Error('the client has gone'));
      });
      const answer: Dispatcher.DispatchHandler = {
        onRequestStart: (given) => {
          controller = given;
        },
        onResponseStart: (_controller, status, headers) => {
          for (const name of HOP_BY_HOP) delete headers[name];
          response.writeHead(status, headers);
        },
        onResponseData: (given, chunk) => {
          if (!response.write(chunk)) given.pause();
        },
        onResponseEnd: () => response.end(),
        onResponseError: (_controller, error) => badGateway(response, error),
      };
      pools[api ? 1 : 0]!.dispatch(
        {
          method,
          path: url,
          headers: endToEnd(request),
          body: hasBody ? request : null,
        },
        answer,
      );
    },
    upgrade: (request, socket) => {
      upgrade(request, socket).catch(() => socket.destroy());
    },
  };
};

const forwarder = kind === 'undici' ? withUndici() : withHttpProxy();

/** The three rules that every proxy has. */
const listener: RequestListener = (request, response) => {
  if (request.url!.startsWith('/admin/')) {
    response.writeHead(403).end();
    return;
  }
  forwarder.forward(request, response, request.headers.host === 'api.example.com');
};

const http = createServer({ keepAliveTimeout: KEEP_ALIVE_MS }, listener);
const tls = { cert: readFileSync(pem), key: readFileSync(pem), minVersion: 'TLSv1.3' as const, ciphers: CIPHER_SUITE };
const https = createTlsServer({ ...tls, keepAliveTimeout: KEEP_ALIVE_MS }, listener);
const webSocket = createServer().on('upgrade', forwarder.upgrade);
http.listen({ port: ports.http, host: '127.0.0.1', backlog: BACKLOG });
https.listen({ port: ports.https, host: '127.0.0.1', backlog: BACKLOG });
webSocket.listen({ port: ports.webSocket, host: '127.0.0.1', backlog: BACKLOG });
