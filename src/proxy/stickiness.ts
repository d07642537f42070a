/**
 * Which server a client had before, by a cookie that it brings or by its address, and how it is made to come back.
 * The cookie has HAProxy's form, `web1` or `web1|last use|first use`, so that one can follow the other in service.
 */
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import type { Sticky, StickyCookie } from '../config/balance.ts';
import type { RequestFacts } from './facts.ts';
import { StickTable } from './stickTable.ts';

/** HAProxy's: a date from further in the future than another time zone can be is no date of ours. */
const MAX_AHEAD_SECONDS = 86_400;
/** HAProxy's: a date is a number of four seconds in five digits of base 64. */
const DATE_UNIT_SECONDS = 4;
const DATE_DIGITS = 5;
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
/** As much of the keyed hash as tells servers apart; 64 bits. */
const ID_HEX_DIGITS = 16;

/** What is known of a server here. `cookie` stands for it in the sticky cookie, instead of its name. */
export type StickyServer = { readonly name: string; readonly model: { slot: number; cookie?: string | undefined } };

/** What a client brought: the server that it had, and since when, in seconds of the wall clock; 0 is not known. */
export type Brought<S> = { server: S; lastSeconds: number; firstSeconds: number };

export type Stickiness<S extends StickyServer> = {
  configure(servers: Iterable<S>): void;
  /** Null when the client brought nothing that names a server. */
  find(facts: RequestFacts): Brought<S> | null;
  /** The client was given this server. Returns the fields that its answer is to have, each a line with its end; or ''. */
  settle(server: S, brought: Brought<S> | null, facts: RequestFacts): string;
};

export const stickinessOf = <S extends StickyServer>(
  backend: string,
  sticky: Sticky,
  table: SharedArrayBuffer | null,
  nowMs: () => number,
): Stickiness<S> => {
  if ('cookie' in sticky) return new StickyByCookie(backend, sticky.cookie);
  // Without the shared memory each worker would remember for itself, and clients come to any of them.
  assert(table !== null, `backend ${backend} has memory for its source table`);
  return new StickyBySource(new StickTable(table, sticky.expire, nowMs));
};

const dateText = (seconds: number): string => {
  const date = Math.ceil(seconds / DATE_UNIT_SECONDS);
  let text = '';
  for (let shift = 6 * (DATE_DIGITS - 1); shift >= 0; shift -= 6) text += BASE64[(date >>> shift) & 63];
  return text;
};

/** Seconds; 0 for what is no date. */
const dateOf = (text: string | undefined): number => {
  if (text?.length !== DATE_DIGITS) return 0;
  let date = 0;
  for (const digit of text) {
    const value = BASE64.indexOf(digit);
    if (value === -1) return 0;
    date = date * 64 + value;
  }
  return date * DATE_UNIT_SECONDS;
};

class StickyByCookie<S extends StickyServer> implements Stickiness<S> {
  readonly #backend: string;
  readonly #cookie: StickyCookie;
  readonly #maxIdleSeconds: number | null;
  readonly #maxLifeSeconds: number | null;
  readonly #attributes: string;
  readonly #cacheControl: string;
  #servers = new Map<string, S>();
  #values = new Map<string, string>();

  constructor(backend: string, cookie: StickyCookie) {
    this.#backend = backend;
    this.#cookie = cookie;
    this.#maxIdleSeconds = cookie.maxIdle === undefined ? null : cookie.maxIdle / 1000;
    this.#maxLifeSeconds = cookie.maxLife === undefined ? null : cookie.maxLife / 1000;
    const sameSite = { lax: 'Lax', strict: 'Strict', none: 'None' }[cookie.sameSite];
    const domain = cookie.domain === undefined ? '' : `; Domain=${cookie.domain}`;
    this.#cacheControl = cookie.noCache ? 'Cache-Control: private\r\n' : '';
    this.#attributes = `; Path=/${domain}${cookie.httpOnly ? '; HttpOnly' : ''}; SameSite=${sameSite}`;
  }

  configure(servers: Iterable<S>): void {
    this.#servers.clear();
    this.#values.clear();
    for (const server of servers) {
      const value = this.#valueOf(server);
      this.#servers.set(value, server);
      this.#values.set(server.name, value);
    }
  }

  find(facts: RequestFacts): Brought<S> | null {
    const text = facts.cookie(this.#cookie.name);
    if (text === null) return null;
    const bar = text.indexOf('|');
    const server = this.#servers.get(bar === -1 ? text : text.slice(0, bar));
    if (!server) return null;
    const [, last, first] = bar === -1 ? [] : text.split('|', 3);
    const brought = { server, lastSeconds: dateOf(last), firstSeconds: dateOf(first) };
    if (this.#maxIdleSeconds === null && this.#maxLifeSeconds === null) return brought;
    const now = Date.now() / 1000;
    const isCurrent =
      isWithin(now, brought.lastSeconds, this.#maxIdleSeconds) &&
      isWithin(now, brought.firstSeconds, this.#maxLifeSeconds);
    return isCurrent ? brought : null;
  }

  settle(server: S, brought: Brought<S> | null, facts: RequestFacts): string {
    const isKnown = brought?.server === server;
    if (isKnown && !this.#needsDates(brought)) return '';
    const value = this.#values.get(server.name);
    assert(value !== undefined, `server ${server.name} is one of the backend's`);
    const isSecure = this.#cookie.secure ?? facts.isTls;
    const dates = this.#dates(isKnown ? brought.firstSeconds : 0);
    const secure = isSecure ? '; Secure' : '';
    return `Set-Cookie: ${this.#cookie.name}=${value}${dates}${this.#attributes}${secure}\r\n${this.#cacheControl}`;
  }

  #valueOf(server: S): string {
    if (server.model.cookie !== undefined) return server.model.cookie;
    if (this.#cookie.key === undefined) return server.name;
    const hash = createHmac('sha256', this.#cookie.key).update(`${this.#backend}\0${server.name}`).digest('hex');
    return hash.slice(0, ID_HEX_DIGITS);
  }

  #dates(firstSeconds: number): string {
    if (this.#maxIdleSeconds === null && this.#maxLifeSeconds === null) return '';
    const now = Date.now() / 1000;
    const last = `|${dateText(now)}`;
    return this.#maxLifeSeconds === null ? last : `${last}|${dateText(firstSeconds || now)}`;
  }

  /** The client has the right server; its cookie is renewed when a date is missing, of no use, or out of date. */
  #needsDates(brought: Brought<S>): boolean {
    const hasAge = this.#maxIdleSeconds !== null || this.#maxLifeSeconds !== null;
    if (this.#maxLifeSeconds === null ? brought.firstSeconds !== 0 : brought.firstSeconds === 0) return true;
    if (this.#maxIdleSeconds === null) return !hasAge && brought.lastSeconds !== 0;
    return brought.lastSeconds < Date.now() / 1000;
  }
}

const isWithin = (nowSeconds: number, dateSeconds: number, maxSeconds: number | null): boolean =>
  maxSeconds === null ||
  dateSeconds === 0 ||
  (nowSeconds - dateSeconds <= maxSeconds && dateSeconds - nowSeconds <= MAX_AHEAD_SECONDS);

class StickyBySource<S extends StickyServer> implements Stickiness<S> {
  readonly #table: StickTable;
  #servers = new Map<number, S>();

  constructor(table: StickTable) {
    this.#table = table;
  }

  configure(servers: Iterable<S>): void {
    this.#servers.clear();
    for (const server of servers) this.#servers.set(server.model.slot, server);
  }

  find(facts: RequestFacts): Brought<S> | null {
    const slot = this.#table.find(facts.source);
    const server = slot === null ? undefined : this.#servers.get(slot);
    return server ? { server, lastSeconds: 0, firstSeconds: 0 } : null;
  }

  settle(server: S, _brought: Brought<S> | null, facts: RequestFacts): string {
    this.#table.store(facts.source, server.model.slot);
    return '';
  }
}
