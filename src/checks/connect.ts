/** Connections of checks: what the server of a PROXY protocol must hear before anything else comes first. */
import { Agent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { ConnectionOptions, TLSSocket } from 'node:tls';
import { connectOptions } from '../config/units.ts';
import { proxyHeaderLocal } from '../proxy/proxyProtocol.ts';
import type { ProbeTarget } from './outcome.ts';

/** A check is nobody's client: both name none. */
const HEADERS = { v1: Buffer.from('PROXY UNKNOWN\r\n', 'latin1'), v2: proxyHeaderLocal() };

export const connectTo = ({ address, sendProxy }: ProbeTarget): Socket => {
  const socket = connect(connectOptions(address));
  // Goes out as soon as there is a connection.
  if (sendProxy) socket.write(HEADERS[sendProxy]);
  return socket;
};

export const connectTlsTo = (target: ProbeTarget, options: ConnectionOptions): TLSSocket => {
  const where = connectOptions(target.address);
  if (!target.sendProxy) return connectTls({ ...options, ...where });
  const socket = connectTo(target);
  const secure = connectTls({ ...options, ...where, socket });
  // Of a socket that was given to it TLS hears the end, but not why.
  socket.on('error', () => {});
  secure.once('close', () => {
    if (socket.errored && !secure.errored) secure.emit('error', socket.errored);
  });
  return secure;
};

/** False where Node's own will do. */
export const agentFor = (target: ProbeTarget, isTls: boolean): Agent | false => {
  if (!target.sendProxy) return false;
  const agent = isTls ? new HttpsAgent() : new Agent();
  agent.createConnection = isTls
    ? (options) => connectTlsTo(target, options as ConnectionOptions)
    : () => connectTo(target);
  return agent;
};
