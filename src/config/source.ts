/** Where a node's configuration comes from: its own file, and under it what its cluster shares, where it takes part. */
import { dirname, resolve } from 'node:path';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { Environment } from './environment.ts';
import type { Layer } from './layers.ts';
import { formatProblem, loadConfig, loadLayers, readConfigText } from './load.ts';
import type { Loaded, Problem } from './load.ts';
import { loadOwnPart, wantsShared } from './ownPart.ts';
import type { Revision } from './revision.ts';
import type { Config } from './schema.ts';
import { cachePath, readCache, writeCache } from './sharedCache.ts';

export type SourcePorts = {
  /** The newest revision that is complete; null when there is none. @throws UnderstudyError when NATS doesn't tell */
  fetch(own: Config): Promise<Revision | null>;
  warn(message: string): void;
};

type Shared = { journalPath: string; cluster: string; node: string; revision: Revision | null };

type Texts = Pick<Revision, 'text' | 'overlays'>;

export class ConfigSource {
  readonly file: string;
  /** What keeps this node from running a revision that it should run. */
  refused: { revision: number; why: string } | null = null;
  /** Why the revision that runs could not be kept for a start without NATS. */
  unkept: string | null = null;
  readonly #environment: Environment;
  readonly #folder: string;
  #shared: Shared | null = null;
  #working: Promise<unknown> = Promise.resolve();

  constructor(file: string, environment: Environment) {
    this.file = file;
    this.#environment = environment;
    this.#folder = dirname(resolve(file));
  }

  /**
   * For a node that starts: with the newest complete revision where NATS tells it, else with the one that it last ran.
   * @throws UnderstudyError CONFIG_UNREADABLE, CONFIG_INVALID
   */
  static async open(file: string, environment: Environment, { fetch, warn }: SourcePorts): Promise<ConfigSource> {
    const source = new ConfigSource(file, environment);
    const text = readConfigText(file);
    if (!wantsShared(text)) return source;
    const { config: own } = loadedOrThrow(file, loadOwnPart(text, environment, source.#folder));
    const { cluster, node, journal } = own;
    const cached = readCache(journal.path, cluster);
    source.#shared = { journalPath: journal.path, cluster, node, revision: cached };
    let newest: Revision | null = null;
    try {
      newest = await fetch(own);
    } catch (error) {
      if (!cached) {
        const message = `what cluster ${cluster} shares is not known: ${messageOf(error)}. A node's first start needs NATS; later it starts with what it last ran, from ${cachePath(journal.path)}`;
        throw new UnderstudyError('CONFIG_UNREADABLE', message);
      }
      warn(`${messageOf(error)}: this node starts with revision ${cached.revision}, which it last ran`);
    }
    if (!newest || newest.revision <= (cached?.revision ?? 0)) return source;
    const loaded = source.loadWith(newest);
    if ('config' in loaded || !cached) {
      loadedOrThrow(file, loaded);
      source.adopt(newest);
    } else {
      source.refused = { revision: newest.revision, why: linesOf(file, loaded.problems).join('\n') };
      warn(
        `revision ${newest.revision} is not for this node: it starts with revision ${cached.revision}, which it last ran`,
      );
    }
    return source;
  }

  get isShared(): boolean {
    return this.#shared !== null;
  }

  /** The revision that this node runs, 0 before the first; null when it doesn't take part. */
  get revision(): number | null {
    return this.#shared && (this.#shared.revision?.revision ?? 0);
  }

  /**
   * The file as it is now, over the revision that runs.
   * @throws UnderstudyError CONFIG_UNREADABLE, NODE_REFUSED when the file takes part in sharing now and didn't, or the
   * other way round
   */
  load(): Loaded {
    const text = readConfigText(this.file);
    if (wantsShared(text) !== this.isShared) {
      const message = `\`shared\` is ${this.isShared ? 'gone from' : 'new in'} ${this.file}: that takes effect at a start only`;
      throw new UnderstudyError('NODE_REFUSED', message);
    }
    if (!this.#shared) return loadConfig(text, this.#environment, this.#folder);
    const { revision } = this.#shared;
    return revision ? this.loadWith(revision) : loadOwnPart(text, this.#environment, this.#folder);
  }

  loadWith(revision: Revision): Loaded {
    return this.#loadOver(revision, `revision ${revision.revision}`, `revision ${revision.revision}, overlay`);
  }

  /** What speaks against a configuration that is to be pushed, on this node. */
  problemsOf(texts: Texts): Problem[] {
    const loaded = this.#loadOver(texts, SHARED_TEXT, OVERLAY);
    if ('config' in loaded) return [];
    return loaded.problems.map((problem) => Object.assign({ source: this.file }, problem));
  }

  /** From now on this node runs it. */
  adopt(revision: Revision): void {
    if (!this.#shared) throw new Error('this node has a configuration of its own');
    this.#shared.revision = revision;
    this.refused = null;
    this.unkept = null;
    try {
      writeCache(this.#shared.journalPath, this.#shared.cluster, revision);
    } catch (error) {
      this.unkept = messageOf(error);
    }
  }

  /** One after the other: what is loaded here is applied before anybody else loads. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#working.then(work);
    // Who asked is told of a failure; who comes next is not kept by it.
    this.#working = result.catch(() => {});
    return result;
  }

  #loadOver({ text, overlays }: Texts, textName: string, overlayName: string): Loaded {
    const { node } = this.#shared!;
    const overlay = overlays[node];
    const layers: Layer[] = [
      { source: textName, text },
      ...(overlay === undefined ? [] : [{ source: `${overlayName} ${node}`, text: overlay }]),
      { source: null, text: readConfigText(this.file) },
    ];
    return loadLayers(layers, this.#environment, this.#folder);
  }
}

/** What problems of a text that isn't stored yet are told of. */
export const SHARED_TEXT = 'shared text';
export const OVERLAY = 'overlay';

const linesOf = (file: string, problems: readonly Problem[]): string[] =>
  problems.map((problem) => formatProblem(file, problem));

/** A configuration that holds. @throws UnderstudyError CONFIG_INVALID with a line for each problem */
export const loadedOrThrow = (file: string, loaded: Loaded): { config: Config; text: string } => {
  if ('config' in loaded) return loaded;
  throw new UnderstudyError(
    'CONFIG_INVALID',
    `the configuration is invalid\n${linesOf(file, loaded.problems).join('\n')}`,
  );
};
