import { connect, createServer } from 'node:net';
import { connectOptions, formatEndpoint } from '../config/units.ts';
import type { Endpoint } from '../config/units.ts';
import { codeOf, messageOf, UnderstudyError } from '../errors.ts';

/**
 * Whether an address can be bound, tried before anything starts. Workers listen with SO_REUSEPORT, with which the
 * kernel would let two programs share a port without a word; this attempt is without it and finds the other one.
 * @throws UnderstudyError ADDRESS_IN_USE, ADDRESS_UNAVAILABLE
 */
export const assertBindable = (what: string, address: Endpoint): Promise<void> =>
  address.path === undefined ? assertPortIsFree(what, address) : assertNobodyListens(what, address);

const assertPortIsFree = (what: string, address: Endpoint): Promise<void> =>
  new Promise((done, refuse) => {
    const server = createServer();
    server.once('error', (error) => {
      const where = formatEndpoint(address);
      const reason: Record<string, string> = {
        EADDRINUSE: 'another program listens there',
        EADDRNOTAVAIL: 'this machine has no such address',
        EACCES: 'ports below 1024 take CAP_NET_BIND_SERVICE',
        ENOTFOUND: 'the name is not known',
      };
      const code = codeOf(error) === 'EADDRINUSE' ? 'ADDRESS_IN_USE' : 'ADDRESS_UNAVAILABLE';
      refuse(
        new UnderstudyError(code, `${what} can't listen on ${where}: ${reason[codeOf(error)] ?? messageOf(error)}`),
      );
    });
    const host = address.host === '*' ? {} : { host: address.host };
    server.listen({ port: address.port, ...host, exclusive: true }, () => server.close(() => done()));
  });

/** A socket file that nobody listens at was left behind, and is replaced. */
const assertNobodyListens = (what: string, address: Endpoint): Promise<void> =>
  new Promise((done, refuse) => {
    const socket = connect(connectOptions(address));
    socket.once('connect', () => {
      socket.destroy();
      const where = formatEndpoint(address);
      refuse(new UnderstudyError('ADDRESS_IN_USE', `${what} can't listen on ${where}: another program listens there`));
    });
    socket.once('error', () => done());
  });
