/** A connection to NATS by the node's configuration, and what its errors mean to an operator. */
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { checkServerIdentity } from 'node:tls';
import type { PeerCertificate } from 'node:tls';
import { JetStreamApiError } from '@nats-io/jetstream';
import {
  AuthorizationError,
  connect,
  credsAuthenticator,
  NoRespondersError,
  nkeyAuthenticator,
  PermissionViolationError,
  TimeoutError,
  tokenAuthenticator,
  UserAuthenticationExpiredError,
  usernamePasswordAuthenticator,
} from '@nats-io/transport-node';
import type { Authenticator, NatsConnection, TlsOptions } from '@nats-io/transport-node';
import type { NatsConfig } from '../config/bus.ts';
import { messageOf, UnderstudyError } from '../errors.ts';

/** A server that has gone without a word is noticed after two of these. */
const PING_INTERVAL_MS = 2_000;
const MAX_PINGS_OUT = 2;
const CONNECT_TIMEOUT_MS = 2_000;
const RECONNECT_WAIT_MS = 500;
const RECONNECT_JITTER_MS = 250;
/** The server's own codes, which the client library doesn't name. */
const JETSTREAM_UNAVAILABLE = 10_008;
const NO_SUITABLE_PEERS = 10_005;
const REPLICAS_UNSUPPORTED = 10_074;
const NOT_ENABLED_FOR_ACCOUNT = 10_039;
const NOT_ENABLED = 10_076;

export type NatsOptions = Pick<NatsConfig, 'servers' | 'credentials' | 'nkey' | 'user' | 'password' | 'token' | 'tls'>;

/** What names this client to the server, and where its replies come in: permissions are given by it. */
export type NatsClient = { name: string; inbox: string };

const textOf = (secret: string | { file: string }): string =>
  typeof secret === 'string' ? secret : readFileSync(secret.file, 'utf8').trim();

/** Read anew for every connection: credentials are renewed while the node runs. */
const authenticatorsOf = ({ credentials, nkey, user, password, token }: NatsOptions): Authenticator[] => {
  const found: Authenticator[] = [];
  const bytes = (secret: string | { file: string }) => new TextEncoder().encode(textOf(secret));
  if (credentials !== undefined) found.push((nonce) => credsAuthenticator(bytes(credentials))(nonce));
  if (nkey !== undefined) found.push((nonce) => nkeyAuthenticator(bytes(nkey))(nonce));
  if (token !== undefined) found.push(() => tokenAuthenticator(textOf(token))());
  if (user !== undefined)
    found.push(() => usernamePasswordAuthenticator(user, password === undefined ? '' : textOf(password))());
  return found;
};

/**
 * Connects once; from then on the library reconnects by itself, for ever.
 * @throws UnderstudyError NATS_UNREACHABLE, NATS_REFUSED
 */
export const connectNats = async (options: NatsOptions, client: NatsClient): Promise<NatsConnection> => {
  const { servers } = options;
  const tls = options.tls ?? (servers.some((url) => url.startsWith('tls:')) ? {} : null);
  try {
    return await connect({
      servers,
      name: client.name,
      inboxPrefix: client.inbox,
      authenticator: authenticatorsOf(options),
      ...(tls ? { tls: tlsOptions(tls, servers) } : {}),
      // What we publish is for others.
      noEcho: true,
      timeout: CONNECT_TIMEOUT_MS,
      pingInterval: PING_INTERVAL_MS,
      maxPingOut: MAX_PINGS_OUT,
      maxReconnectAttempts: -1,
      reconnectTimeWait: RECONNECT_WAIT_MS,
      reconnectJitter: RECONNECT_JITTER_MS,
      // Credentials that are being renewed are refused for a while.
      ignoreAuthErrorAbort: true,
    });
  } catch (error) {
    throw natsError(error, servers);
  }
};

const tlsOptions = (
  { ca, certificate, key }: NonNullable<NatsOptions['tls']>,
  servers: readonly string[],
): TlsOptions => {
  const addresses = servers
    .map((url) => new URL(url).hostname.replaceAll(/[[\]]/g, ''))
    .filter((host) => isIP(host) !== 0);
  const more = {
    // For a server given by its address the library names no host, and Node takes `localhost` for it.
    checkServerIdentity: (host: string, shown: PeerCertificate): Error | undefined => {
      const failure = checkServerIdentity(host, shown);
      const isKnown = host === 'localhost' && addresses.some((address) => !checkServerIdentity(address, shown));
      return isKnown ? undefined : failure;
    },
  };
  return {
    ...(ca === undefined ? {} : { caFile: ca }),
    ...(certificate === undefined ? {} : { certFile: certificate }),
    ...(key === undefined ? {} : { keyFile: key }),
    ...more,
  };
};

/** The library's and the server's errors as ours, in an operator's words. */
export const natsError = (error: unknown, servers: readonly string[]): UnderstudyError => {
  if (error instanceof UnderstudyError) return error;
  const at = servers.join(', ');
  const message = messageOf(error);
  if (error instanceof AuthorizationError)
    return new UnderstudyError('NATS_REFUSED', `NATS at ${at} refuses these credentials: ${message}`);
  if (error instanceof UserAuthenticationExpiredError)
    return new UnderstudyError('NATS_REFUSED', `the credentials for NATS at ${at} have expired`);
  // A request wraps it.
  const isForbidden = (one: unknown) => one instanceof PermissionViolationError;
  if (isForbidden(error) || (error instanceof Error && isForbidden(error.cause)))
    return new UnderstudyError('NATS_REFUSED', `NATS at ${at} permits it not: ${message}`);
  if (isNotEnabled(error) || (error instanceof JetStreamApiError && isWithoutJetStream(error.code)))
    return new UnderstudyError(
      'NATS_NO_JETSTREAM',
      `NATS at ${at} has no JetStream for us; start nats-server with a jetstream block, and let the account use it`,
    );
  if (error instanceof JetStreamApiError) {
    if (error.code === NO_SUITABLE_PEERS || error.code === REPLICAS_UNSUPPORTED)
      return new UnderstudyError(
        'NATS_STREAM_REFUSED',
        `NATS at ${at} has not so many servers for the replicas: ${message}`,
      );
    if (error.code === JETSTREAM_UNAVAILABLE)
      return new UnderstudyError('NATS_UNREACHABLE', `JetStream at ${at} has no leader at the moment`);
    return new UnderstudyError('NATS_STREAM_REFUSED', `NATS at ${at} refuses: ${message} (${error.code})`);
  }
  const cause = error instanceof Error && error.cause !== undefined ? error.cause : error;
  if (cause instanceof NoRespondersError) return new UnderstudyError('NATS_TIMEOUT', `nobody answers: ${message}`);
  if (error instanceof TimeoutError) return new UnderstudyError('NATS_TIMEOUT', `no answer in time from NATS at ${at}`);
  return new UnderstudyError('NATS_UNREACHABLE', `NATS at ${at} can't be reached: ${message}`);
};

/** The client library keeps this class to itself. */
const isNotEnabled = (error: unknown): boolean => error instanceof Error && error.name === 'JetStreamNotEnabled';

const isWithoutJetStream = (code: number): boolean => code === NOT_ENABLED_FOR_ACCOUNT || code === NOT_ENABLED;
