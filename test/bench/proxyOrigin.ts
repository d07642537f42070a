/** What stands behind every proxy of `bench:proxy`: one nginx for HTTP and TCP, one echo server for WebSocket. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from '../../src/demo/processes.ts';
import { listening, start, withRetries } from './proxyProcesses.ts';

export const MIB = 1024 * 1024;
/** So large that what begins a connection doesn't count. */
const BULK_MIB = 16;

/** Ports on 127.0.0.1. */
export type Origin = { web: number; api: number; webSocket: number };

const server = (port: number, name: string, folder: string): string => `
  server {
    listen 127.0.0.1:${port} backlog=4096;
    root ${folder};
    default_type text/plain;
    location = / { return 200 "hello world, a small answer of some bytes"; }
    location = /seen { return 200 "${name} $http_x_forwarded_for $http_x_forwarded_proto"; }
    location / { }
  }`;

const nginxConfig = ({ web, api }: Origin, folder: string): string => `
user root;
daemon off;
master_process off;
pid ${folder}/origin.pid;
error_log stderr error;
worker_rlimit_nofile 16384;
events { worker_connections 16000; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${folder}/origin-${kind};`).join(' ')}
  ${server(web, 'web', folder)}
  ${server(api, 'api', folder)}
}`;

/** `/` is small, `/seen` says who answers and which X-Forwarded-For and -Proto came, `/mib` and `/bulk` are large. */
export const startOrigin = (folder: string, cores: string): Promise<Origin> =>
  withRetries(() => attemptStart(folder, cores));

const attemptStart = async (folder: string, cores: string): Promise<Origin> => {
  const origin: Origin = { web: await freePort(0), api: await freePort(0), webSocket: await freePort(0) };
  writeFileSync(join(folder, 'mib'), Buffer.alloc(MIB, 'a mebibyte '));
  writeFileSync(join(folder, 'bulk'), Buffer.alloc(BULK_MIB * MIB, 'bulk '));
  const file = join(folder, 'origin.conf');
  writeFileSync(file, nginxConfig(origin, folder));
  const nginx = start('the server', ['nginx', '-p', folder, '-c', file], { cores });
  const echoFile = join(import.meta.dirname, 'proxyWebSocketEcho.ts');
  const echo = start('the echo server', [process.execPath, echoFile, String(origin.webSocket)], { cores });
  await listening(nginx, [origin.web, origin.api]);
  await listening(echo, [origin.webSocket]);
  return origin;
};
