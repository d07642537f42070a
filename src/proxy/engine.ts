/** What both engines, TCP and HTTP, need of their worker. */
import type { Socket } from 'node:net';
import type { Backend } from './backend.ts';
import type { Counters } from './counters.ts';
import type { FrontendModel, RuleModel } from './model.ts';

export type CompiledRule = { host: RegExp | null; path: RegExp | null; use: string };

export type Frontend = { model: FrontendModel; rules: CompiledRule[] };

export type Engine = {
  counters: Counters;
  backend(name: string): Backend | undefined;
};

/** One client connection of either mode. */
export type ClientSession = {
  /** End as soon as what is under way is done. */
  drain(): void;
  destroy(): void;
};

/** A client's connection: plain or TLS, it is the same stream. */
export type ClientSocket = Socket & { encrypted?: boolean };

export const compileRules = (rules: RuleModel[]): CompiledRule[] =>
  rules.map(({ host, path, use }) => ({
    host: host === null ? null : new RegExp(host),
    path: path === null ? null : new RegExp(path),
    use,
  }));

/** The first rule that holds decides; otherwise the frontend's default. */
export const route = (frontend: Frontend, host: string, target: string): string => {
  if (frontend.rules.length === 0) return frontend.model.use;
  const query = target.indexOf('?');
  const path = query === -1 ? target : target.slice(0, query);
  const rule = frontend.rules.find(
    (candidate) => (!candidate.host || candidate.host.test(host)) && (!candidate.path || candidate.path.test(path)),
  );
  return rule?.use ?? frontend.model.use;
};

/**
 * Ends a connection so that the other side knows that something is missing. TLS has no reset (Node throws), but without
 * close_notify it says the same; and libuv refuses a reset while a shutdown is under way, and then never closes.
 */
export const reset = (socket: ClientSocket): void => {
  const isShutting = socket.writableEnded && socket.writableLength === 0;
  if (socket.encrypted === true || isShutting) socket.destroy();
  else socket.resetAndDestroy();
};
