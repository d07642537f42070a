/** `--cluster`: the log of a cluster in place of a journal's file, read from NATS into files that go with the command. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ClusterLog } from '../bus/clusterLog.ts';
import type { ClusterLineage } from '../bus/clusterLineage.ts';
import type { NatsOptions } from '../bus/connection.ts';
import { problemText } from '../bus/logStanding.ts';
import { UnderstudyError } from '../errors.ts';
import { progress, warn } from './output.ts';

export type ClusterOptions = {
  /** True when the option stands alone: then the environment has the servers. */
  cluster?: string | true;
  node?: string;
  credentials?: string;
  nkey?: string;
  natsCa?: string;
  natsCert?: string;
  natsKey?: string;
};

/** Progress is shown this often: a terminal can't be read faster. */
const SHOW_EVERY_MS = 200;

const URL_FORM =
  /^(?<server>(?:nats|tls):\/\/)(?:(?<user>[^:@/]+)(?::(?<password>[^@/]*))?@)?(?<host>[^/@]+)(?:\/(?<cluster>[^/]*))?$/;

type Source = { options: NatsOptions; cluster: string | null };

/** @throws UnderstudyError USAGE */
export const sourceOf = (given: ClusterOptions): Source => {
  const text = given.cluster === true ? process.env['UNDERSTUDY_NATS'] : given.cluster;
  if (text === undefined || text === '')
    throw new UnderstudyError(
      'USAGE',
      '--cluster needs the URL of a NATS server, or UNDERSTUDY_NATS in the environment',
    );
  const urls = text.split(',').map((url) => {
    const parts = URL_FORM.exec(url.trim())?.groups;
    if (parts) return parts;
    const forms = 'nats://10.0.0.11:4222, nats://10.0.0.11:4222,nats://10.0.0.12:4222/shop';
    throw new UnderstudyError('USAGE', `${url} is not the URL of a NATS server; allowed are forms like ${forms}`);
  });
  const named = (key: string): string | undefined => urls.map((parts) => parts[key]).find((part) => part);
  const [user, password] = [named('user'), named('password')];
  const { credentials, nkey, natsCa, natsCert, natsKey } = given;
  const isTls = natsCa !== undefined || natsCert !== undefined || urls.some(({ server }) => server === 'tls://');
  return {
    cluster: named('cluster') ?? null,
    options: {
      servers: urls.map(({ server, host }) => `${server}${host}`),
      ...(user === undefined ? {} : { user: decodeURIComponent(user) }),
      ...(password === undefined ? {} : { password: decodeURIComponent(password) }),
      ...(credentials === undefined ? {} : { credentials: { file: credentials } }),
      ...(nkey === undefined ? {} : { nkey: { file: nkey } }),
      ...(isTls
        ? {
            tls: {
              ...(natsCa === undefined ? {} : { ca: natsCa }),
              ...(natsCert === undefined ? {} : { certificate: natsCert }),
              ...(natsKey === undefined ? {} : { key: natsKey }),
            },
          }
        : {}),
    },
  };
};

/** The node of `lb1` and `lb1@3f2a`, which is one of its journals by the beginning of its identity. */
export const nodeOf = (named: string | undefined): string | undefined => named?.split('@')[0];

/** @throws UnderstudyError */
export const readCluster = async (given: ClusterOptions, sinceUs?: number): Promise<ClusterLog> => {
  const { options, cluster } = sourceOf(given);
  const log = await ClusterLog.open(options, cluster, temporaryFolder());
  let shownMs = 0;
  const node = nodeOf(given.node);
  try {
    await log.read({
      ...(node === undefined ? {} : { node }),
      ...(sinceUs === undefined ? {} : { sinceUs }),
      progress: (read, of) => {
        const nowMs = performance.now();
        if (nowMs - shownMs < SHOW_EVERY_MS) return;
        shownMs = nowMs;
        progress(`reading the log of ${log.cluster}: ${Math.floor((100 * read) / of)} %`);
      },
    });
  } catch (error) {
    await log.close();
    throw error;
  } finally {
    progress('');
  }
  for (const { server, node: whose, problems } of log.drifts)
    warn(
      `nats-server before 2.10 lets copies of a stream drift apart: the copy on ${server} has ${whose}'s ${problems.map(problemText).join('; ')}. Other copies make up for it`,
    );
  for (const server of log.silent) warn(`nats-server ${server} did not give its copy of the log`);
  return log;
};

/** The journal of one node: the one that was named, or the only one's newest. @throws UnderstudyError */
export const lineageOf = (log: ClusterLog, named: string | undefined): ClusterLineage => {
  const [node, journal = ''] = (named ?? '').split('@');
  const nodes = log.nodes.join(', ');
  if (log.lineages.length === 0)
    throw new UnderstudyError(
      'RECORD_NOT_FOUND',
      named === undefined ? `the log of ${log.cluster} is empty` : `the log of ${log.cluster} has no node ${named}`,
    );
  if (named === undefined && log.nodes.length > 1)
    throw new UnderstudyError('USAGE', `name a node with --node; the log of ${log.cluster} has ${nodes}`);
  const found = log.lineages.findLast(
    (lineage) => (named === undefined || lineage.node === node) && lineage.journal.startsWith(journal),
  );
  if (found) return found;
  throw new UnderstudyError('RECORD_NOT_FOUND', `the log of ${log.cluster} has no node ${named}; it has ${nodes}`);
};

/**
 * A file to read: the journal that was named, or that of one node of the cluster. Null where neither was.
 * @throws UnderstudyError
 */
export const clusterJournal = async (journal: string | undefined, given: ClusterOptions): Promise<string | null> => {
  if (given.cluster === undefined) return journal ?? null;
  if (journal !== undefined)
    throw new UnderstudyError('USAGE', 'a journal and --cluster: only one of them can be read');
  const log = await readCluster(given);
  try {
    const { path, problems, node } = lineageOf(log, given.node);
    if (problems.length > 0)
      warn(`understudy: the log of ${node} is not whole; understudy verify --cluster says what it lacks`);
    return path;
  } finally {
    await log.close();
  }
};

/** @throws UnderstudyError USAGE */
export const neededJournal = async (journal: string | undefined, given: ClusterOptions): Promise<string> => {
  const path = await clusterJournal(journal, given);
  if (path === null) throw new UnderstudyError('USAGE', 'name a journal, or --cluster with the URL of a NATS server');
  return path;
};

const temporaryFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-cluster-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
  return folder;
};
