/** Speaks to a running node for the commands that need one. */
import { readFileSync } from 'node:fs';
import type { StateView } from '../api/state.ts';
import { messageOf, UnderstudyError } from '../errors.ts';

export type ClientOptions = { api?: string; token?: string };

export const DEFAULT_API = 'http://127.0.0.1:8404';

/** How long a node may take to answer: a command waits for the disk. */
const ANSWER_MS = 10_000;

export class NodeClient {
  readonly url: string;
  #token: string | undefined;

  constructor(options: ClientOptions) {
    this.url = (options.api ?? process.env['UNDERSTUDY_API'] ?? DEFAULT_API).replace(/\/$/, '');
    this.#token = options.token ?? process.env['UNDERSTUDY_TOKEN'];
  }

  /** Of this node, or of another one of its cluster. */
  state(node?: string): Promise<StateView> {
    const query = node === undefined ? '' : `?node=${encodeURIComponent(node)}`;
    return this.#request<StateView>('GET', `/api/state${query}`);
  }

  /** Lets the node write what it still gathers about an actor, so that its journal reaches the present moment. */
  async flush(actor: string): Promise<void> {
    await this.#request('GET', `/api/events?limit=1&actor=${encodeURIComponent(actor)}`);
  }

  /** @throws UnderstudyError NODE_UNREACHABLE, NODE_REFUSED */
  async command(command: Record<string, unknown>): Promise<unknown> {
    this.#token ??= await this.#tokenFromFile();
    return this.#request('POST', '/api/commands', command);
  }

  /** What needs the token to be read, too. @throws UnderstudyError NODE_UNREACHABLE, NODE_REFUSED */
  async withToken<T>(method: 'GET' | 'POST', path: string, body?: unknown, answerMs = ANSWER_MS): Promise<T> {
    this.#token ??= await this.#tokenFromFile();
    return this.#request<T>(method, path, body, answerMs);
  }

  /** Whoever may read the node's token file on this machine may command it. */
  async #tokenFromFile(): Promise<string> {
    const { node } = await this.state();
    const hint = 'give it with --token, or in UNDERSTUDY_TOKEN';
    if (node.tokenFile === null) throw new UnderstudyError('USAGE', `the node's token is needed; ${hint}`);
    try {
      return readFileSync(node.tokenFile, 'utf8').trim();
    } catch (error) {
      throw new UnderstudyError('USAGE', `the node's token can't be read (${messageOf(error)}); ${hint}`);
    }
  }

  async #request<T>(method: string, path: string, body?: unknown, answerMs = ANSWER_MS): Promise<T> {
    let response: Response;
    try {
      response = await fetch(this.url + path, {
        method,
        headers: {
          ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(answerMs),
      });
    } catch (error) {
      const reason = error instanceof Error && error.cause ? messageOf(error.cause) : messageOf(error);
      throw new UnderstudyError(
        'NODE_UNREACHABLE',
        `no node answers at ${this.url} (${reason}); --api or UNDERSTUDY_API names another address`,
      );
    }
    let answer: T & { message?: string };
    try {
      answer = (await response.json()) as T & { message?: string };
    } catch {
      throw new UnderstudyError('NODE_UNREACHABLE', `what answers at ${this.url} is no node of Understudy`);
    }
    if (!response.ok) {
      // 503: the node could not reach or read what the command needs.
      const code = response.status === 503 ? 'NODE_UNREACHABLE' : 'NODE_REFUSED';
      throw new UnderstudyError(code, answer.message ?? `the node answered ${response.status}`);
    }
    return answer;
  }
}
