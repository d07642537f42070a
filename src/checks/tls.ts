import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import type { CheckConfig } from '../config/schema.ts';
import { connectTlsTo } from './connect.ts';
import { errorText, failed, limit, passed } from './outcome.ts';
import type { Probe } from './outcome.ts';

type Verification = { serverName?: string | undefined; verify: boolean; ca?: string | undefined };

/** Authorities by file. A file that was renewed is read again. */
const authorities = new Map<string, { mtimeMs: number; pem: Buffer }>();

const authoritiesOf = (file: string): Buffer => {
  const { mtimeMs } = statSync(file);
  const known = authorities.get(file);
  if (known?.mtimeMs === mtimeMs) return known.pem;
  const pem = readFileSync(file);
  authorities.set(file, { mtimeMs, pem });
  return pem;
};

/** Trust, name and verification as a check has them. Throws when the file of the authorities can't be read. */
export const tlsOptions = (check: Verification, host: string): ConnectionOptions => {
  const servername = check.serverName ?? (isIP(host) ? undefined : host);
  return {
    rejectUnauthorized: check.verify,
    ...(servername === undefined ? {} : { servername }),
    ...(check.ca === undefined ? {} : { ca: authoritiesOf(check.ca) }),
  };
};

/** Layer 6: a complete handshake, with a valid certificate unless `verify` is false. */
export const probeTls: Probe<Extract<CheckConfig, { type: 'tls' }>> = (target, check, timeoutMs, finish) => {
  let connected = false;
  const socket = connectTlsTo(target, tlsOptions(check, target.address.host));
  const end = (outcome: Parameters<typeof finish>[0]) => {
    lift();
    socket.destroy();
    finish(outcome);
  };
  const lift = limit(timeoutMs, () => {
    end(
      connected
        ? failed('L6TOUT', `no handshake within ${timeoutMs} ms`)
        : failed('L4TOUT', `no connection within ${timeoutMs} ms`),
    );
  });
  socket.once('connect', () => (connected = true));
  socket.once('secureConnect', () => end(passed('L6OK', socket.getProtocol() ?? '')));
  socket.on('error', (error) => end(failed(connected ? 'L6RSP' : 'L4CON', errorText(error))));
  socket.on('close', () => end(failed(connected ? 'L6RSP' : 'L4CON', 'connection closed during the handshake')));
  return () => {
    lift();
    socket.destroy();
  };
};
