/** `understudy run`: a node and its API in the foreground, driven by signals. */
import pino from 'pino';
import type { Logger } from 'pino';
import { startApi } from './api/server.ts';
import type { Api } from './api/server.ts';
import { loadConfigFile } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { ConfigSource, loadedOrThrow } from './config/source.ts';
import { messageOf } from './errors.ts';
import { assertBindable } from './net/bindable.ts';
import { UnderstudyNode } from './node.ts';
import type { ReloadResult } from './node.ts';
import { takeOver, TakeoverDoor } from './takeover.ts';

/** A configuration that holds. @throws UnderstudyError CONFIG_INVALID with a line for each problem, CONFIG_UNREADABLE */
export const loadOrThrow = (file: string): { config: Config; text: string } =>
  loadedOrThrow(file, loadConfigFile(file, process.env));

/** Log lines that may wait while standard output takes none; what is beyond that is dropped. */
const MAX_WAITING_LOG_BYTES = 1024 * 1024;

/** JSON lines, or on a terminal something to read. `end` lets go of lines that nobody takes. */
const makeLogger = async (): Promise<{ log: Logger; end(): void }> => {
  if (process.stdout.isTTY) {
    const { default: pinoPretty } = await import('pino-pretty');
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

/** Starts a node and stays until a signal ends it. With `takesOver`, in the place of the process that runs it now. */
export const runNode = async (file: string, takesOver = false): Promise<void> => {
  const { log, end: endLog } = await makeLogger();
  const source = await ConfigSource.open(file, process.env, {
    // Who shares nothing needs none of what speaks NATS here.
    fetch: async (own) => (await import('./bus/configFetch.ts')).fetchConfig(own),
    warn: (message) => log.warn(message),
  });
  const { config, text } = loadedOrThrow(file, source.load());
  const taken = takesOver ? takeOver(config.journal.path) : null;
  if (takesOver && !taken) log.info('no process runs this node: there is nothing to take over');
  await assertBindable('the API', config.api.listen);
  const node = await UnderstudyNode.start(config, text, log, taken?.sockets, source);
  const reload = async (): Promise<ReloadResult> => {
    const result = await source.exclusively(() => {
      const next = loadedOrThrow(file, source.load());
      return node.reload(next.config, next.text);
    });
    log.info(result, `configuration reloaded from ${file}`);
    node.cluster?.sharedConfig.reloaded();
    for (const key of result.needRestart) log.warn(`${key} changed; it takes effect at the next start`);
    return result;
  };
  node.readOwnConfig = reload;
  let api: Api;
  try {
    api = await startApi({ node, reload });
  } catch (error) {
    await node.stop();
    throw error;
  }
  const handedOver = Promise.withResolvers<'handed over'>();
  const door = new TakeoverDoor(
    node.journal.path,
    {
      handOver: async () => {
        log.info('another process takes over');
        await api.close();
        return node.handOver();
      },
      leave: () => handedOver.resolve('handed over'),
      abandoned: () =>
        log.error(
          'the process that was to take over is gone: traffic goes on unchecked; start it again with --takeover',
        ),
    },
    (message) => log.warn(message),
  );
  await door.open();
  taken?.serving();
  log.info({ api: api.url, journal: node.journal.path }, `node ${config.node} is running; its API is at ${api.url}`);
  process.on('SIGHUP', () => {
    reload().catch((error: unknown) => log.error(`nothing was changed: ${messageOf(error)}`));
  });
  const signalled = Promise.withResolvers<'signalled'>();
  const end = (signal: string) => {
    log.info(`${signal}: ending traffic and leaving`);
    signalled.resolve('signalled');
  };
  process.once('SIGTERM', () => end('SIGTERM'));
  process.once('SIGINT', () => end('SIGINT'));
  const why = await Promise.race([signalled.promise, handedOver.promise]);
  // A second signal means now.
  process.on('SIGINT', () => process.exit(130));
  door.close();
  if (why === 'handed over') {
    await node.leave();
  } else {
    await node.stop();
    await api.close();
  }
  log.info('left');
  endLog();
};
