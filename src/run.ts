/** `understudy run`: a node and its API in the foreground, driven by signals. */
import pino from 'pino';
import type { Logger } from 'pino';
import pinoPretty from 'pino-pretty';
import { startApi } from './api/server.ts';
import type { Api } from './api/server.ts';
import { formatProblem, loadConfigFile } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { messageOf, UnderstudyError } from './errors.ts';
import { assertBindable } from './net/bindable.ts';
import { UnderstudyNode } from './node.ts';
import type { ReloadResult } from './node.ts';

/** A configuration that holds. @throws UnderstudyError CONFIG_INVALID with a line for each problem, CONFIG_UNREADABLE */
export const loadOrThrow = (file: string): { config: Config; text: string } => {
  const loaded = loadConfigFile(file, process.env);
  if ('config' in loaded) return loaded;
  const lines = loaded.problems.map((problem) => formatProblem(file, problem));
  throw new UnderstudyError('CONFIG_INVALID', `the configuration is invalid\n${lines.join('\n')}`);
};

/** Log lines that may wait while standard output takes none; what is beyond that is dropped. */
const MAX_WAITING_LOG_BYTES = 1024 * 1024;

/** JSON lines, or on a terminal something to read. `end` lets go of lines that nobody takes. */
const makeLogger = (): { log: Logger; end(): void } => {
  if (process.stdout.isTTY) {
    const pretty = pinoPretty({
      translateTime: 'SYS:HH:MM:ss.l',
      ignore: 'pid,hostname,actor,state,event',
      sync: true,
    });
    return { log: pino(pretty), end: () => {} };
  }
  const lines = pino.destination({ fd: 1, sync: false, maxLength: MAX_WAITING_LOG_BYTES });
  // A log on a full disk is written again with the next line; it must never end the node.
  let failed = false;
  lines.on('error', () => (failed = true));
  lines.on('drain', () => (failed = false));
  return {
    log: pino(lines),
    // pino flushes at exit, and would try a full disk for ever.
    end: () => {
      if (failed) lines.destroy();
    },
  };
};

/** Starts a node and stays until a signal ends it. */
export const runNode = async (file: string): Promise<void> => {
  const { config, text } = loadOrThrow(file);
  await assertBindable('the API', config.api.listen);
  const { log, end: endLog } = makeLogger();
  const node = await UnderstudyNode.start(config, text, log);
  const reload = async (): Promise<ReloadResult> => {
    const next = loadOrThrow(file);
    const result = await node.reload(next.config, next.text);
    log.info(result, `configuration reloaded from ${file}`);
    for (const key of result.needRestart) log.warn(`${key} changed; it takes effect at the next start`);
    return result;
  };
  let api: Api;
  try {
    api = await startApi({ node, reload });
  } catch (error) {
    await node.stop();
    throw error;
  }
  log.info({ api: api.url, journal: node.journal.path }, `node ${config.node} is running; its API is at ${api.url}`);
  process.on('SIGHUP', () => {
    reload().catch((error: unknown) => log.error(`nothing was changed: ${messageOf(error)}`));
  });
  await new Promise<void>((ended) => {
    const end = (signal: string) => {
      log.info(`${signal}: ending traffic and leaving`);
      ended();
    };
    process.once('SIGTERM', () => end('SIGTERM'));
    process.once('SIGINT', () => end('SIGINT'));
  });
  // A second signal means now.
  process.on('SIGINT', () => process.exit(130));
  await node.stop();
  await api.close();
  log.info('left');
  endLog();
};
