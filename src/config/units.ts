/** Values with units, as configurations write them. Each returns null for what isn't one. */
import ipaddr from 'ipaddr.js';

const DURATION_MS: Record<string, number> = { us: 0.001, ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const SIZE_BYTES: Record<string, number> = {
  B: 1,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  TiB: 1024 ** 4,
  kB: 1000,
  MB: 1000 ** 2,
  GB: 1000 ** 3,
};

const withUnit = (text: string, units: Record<string, number>): number | null => {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$/.exec(text.trim());
  const factor = match && Object.hasOwn(units, match[2]!) ? units[match[2]!] : undefined;
  return match && factor !== undefined ? Number(match[1]) * factor : null;
};

/** `500ms`, `2s`, `1m`, `30d`; 0 needs no unit. In milliseconds. */
export const parseDuration = (text: string): number | null => (text.trim() === '0' ? 0 : withUnit(text, DURATION_MS));

/** `16KiB`, `10GiB`. In bytes. */
export const parseSize = (text: string): number | null => withUnit(text, SIZE_BYTES);

export const isLoopback = (host: string): boolean =>
  host === 'localhost' || (ipaddr.isValid(host) && ipaddr.process(host).range() === 'loopback');

/**
 * Where to connect or listen. With a `path` it is a Unix socket; its host, for SNI and Host fields, is `localhost`, its
 * port 0.
 */
export type Endpoint = { host: string; port: number; path?: string };

/** `127.0.0.1:80`, `[::1]:80`, `web.internal:80`, and for listening `*:80`. */
export const parseInetEndpoint = (text: string): Endpoint | null => {
  const match = /^(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:[\]/]+)):(\d{1,5})$/.exec(text.trim());
  if (!match) return null;
  const port = Number(match[3]);
  return port > 65_535 ? null : { host: (match[1] ?? match[2])!, port };
};

const UNIX = 'unix:';
/** `sun_path` has 108 bytes, one of them for the zero at its end (unix(7)). */
const MAX_UNIX_PATH_BYTES = 107;

/** As `parseInetEndpoint`, and `unix:/run/shop.sock`, whose path is absolute. */
export const parseEndpoint = (text: string): Endpoint | null => {
  const trimmed = text.trim();
  if (!trimmed.startsWith(UNIX)) return parseInetEndpoint(trimmed);
  const path = trimmed.slice(UNIX.length);
  const isPath = /^\/[^\0]*[^\0/]$/.test(path) && Buffer.byteLength(path) <= MAX_UNIX_PATH_BYTES;
  return isPath ? { host: 'localhost', port: 0, path } : null;
};

/** For `connect` of node:net and node:tls. */
export const connectOptions = ({ host, port, path }: Endpoint): { path: string } | { host: string; port: number } =>
  path === undefined ? { host, port } : { path };

/** As `parseEndpoint` reads it. */
export const formatEndpoint = ({ host, port, path }: Endpoint): string => {
  if (path !== undefined) return `${UNIX}${path}`;
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
};
