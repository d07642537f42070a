import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { connect } from 'node:tls';
import type { ConnectionOptions } from 'node:tls';
import type { CheckConfig } from '../config/schema.ts';
import { errorText, failed, passed } from './probe.ts';
import type { Probe } from './probe.ts';

type Verification = { serverName?: string | undefined; verify: boolean; ca?: string | undefined };

const authorities = new Map<string, Buffer>();

/** Trust, name and verification as a check has them; files are read once. */
export const tlsOptions = (check: Verification, host: string): ConnectionOptions => {
  const servername = check.serverName ?? (isIP(host) ? undefined : host);
  if (check.ca !== undefined && !authorities.has(check.ca)) authorities.set(check.ca, readFileSync(check.ca));
  return {
    rejectUnauthorized: check.verify,
    ...(servername === undefined ? {} : { servername }),
    ...(check.ca === undefined ? {} : { ca: authorities.get(check.ca)! }),
  };
};

/** Layer 6: a complete handshake, with a valid certificate unless `verify` is false. */
export const probeTls: Probe<Extract<CheckConfig, { type: 'tls' }>> = ({ address }, check, timeoutMs, finish) => {
  let connected = false;
  const socket = connect({ ...tlsOptions(check, address.host), host: address.host, port: address.port });
  const end = (outcome: Parameters<typeof finish>[0]) => {
    clearTimeout(timer);
    socket.destroy();
    finish(outcome);
  };
  const timer = setTimeout(() => {
    end(
      connected
        ? failed('L6TOUT', `no handshake within ${timeoutMs} ms`)
        : failed('L4TOUT', `no connection within ${timeoutMs} ms`),
    );
  }, timeoutMs);
  socket.once('connect', () => (connected = true));
  socket.once('secureConnect', () => end(passed('L6OK', socket.getProtocol() ?? '')));
  socket.on('error', (error) => end(failed(connected ? 'L6RSP' : 'L4CON', errorText(error))));
  socket.on('close', () => end(failed(connected ? 'L6RSP' : 'L4CON', 'connection closed during the handshake')));
  return () => {
    clearTimeout(timer);
    socket.destroy();
  };
};
