/** The views of a whole pool in a heartbeat: a hash of its list of servers, and one character for each in that order. */
import type { View } from '../../machines/healthQuorum.ts';
import { hashText } from '../proxy/hash.ts';

export type Opinion = View | 'none';

const CHARACTERS: Record<Opinion, string> = { up: 'u', down: 'd', none: '-' };
const OPINIONS: Record<string, Opinion> = { u: 'up', d: 'down', '-': 'none' };

/** Names in their order, not addresses: nodes may reach the same server at different ones. */
export const listHash = (servers: readonly string[]): string => (hashText(servers.join('\n')) >>> 0).toString(36);

export const encodeViews = (hash: string, views: readonly Opinion[]): string =>
  `${hash}:${views.map((view) => CHARACTERS[view]).join('')}`;

/** Null for another list of servers, and for what isn't views. */
export const decodeViews = (text: string, hash: string, count: number): Opinion[] | null => {
  if (!text.startsWith(`${hash}:`) || text.length !== hash.length + 1 + count) return null;
  const views = text
    .slice(hash.length + 1)
    .split('')
    .map((character) => OPINIONS[character]);
  return views.every((view) => view !== undefined) ? views : null;
};
