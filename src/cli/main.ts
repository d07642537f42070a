/** The command line: names, arguments and options. What each command does stands in a file of its own. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { UnderstudyError } from '../errors.ts';
import { version } from '../version.ts';
import { failWith } from './output.ts';

const program = new Command('understudy')
  .description('A high-availability load balancer whose every decision is a recorded state transition.')
  .version(version)
  .showHelpAfterError('(understudy --help lists the commands)')
  .exitOverride();

const positive = (text: string): number => {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError('A whole number from 1 is allowed.');
  return Number(text);
};

/** Loads what one command needs, and no more: most are asked for far more often than they take long. */
const lazily =
  <Args extends unknown[]>(load: () => Promise<(...args: Args) => void | Promise<void>>) =>
  async (...args: Args): Promise<void> => {
    const run = await load();
    await run(...args);
  };

const collect = (text: string, before: string[]): string[] => [...before, text];

const json = () => new Option('--json', 'print JSON');
const api = () => new Option('--api <url>', 'the node’s API').env('UNDERSTUDY_API').default('http://127.0.0.1:8404');
const token = () => new Option('--token <token>', 'default: read from the node’s own file').env('UNDERSTUDY_TOKEN');

/** The log of a cluster in place of a journal's file. */
const ofCluster = (command: Command): Command =>
  command
    .option(
      '--cluster [urls]',
      'read the cluster’s log from NATS; the URL may end in /CLUSTER (default: UNDERSTUDY_NATS)',
    )
    .option('--node <name>', 'the node whose records are meant')
    .option('--credentials <file>', 'credentials for NATS')
    .option('--nkey <file>', 'seed of an nkey for NATS')
    .option('--nats-ca <file>', 'authorities to trust for NATS')
    .option('--nats-cert <file>', 'certificate to show to NATS')
    .option('--nats-key <file>', 'its key');

program
  .command('run')
  .description('run a node in the foreground; SIGTERM drains and leaves, SIGHUP reloads')
  .argument('<config>')
  .option('--takeover', 'take the place of the process that runs this node now, without a lost connection')
  .action(async (file: string, { takeover }: { takeover?: true }) => {
    const { runNode } = await import('../run.ts');
    await runNode(file, takeover === true);
    process.exit(0);
  });

program
  .command('check')
  .description('validate a configuration; prints each problem with its place')
  .argument('[config]')
  .option('--schema', 'print the JSON Schema of the configuration instead, for editors')
  .option('--shared <file>', 'what the cluster shares, for the file of a node that says `shared: true`')
  .option('--overlay <file>', 'what is different on that node')
  .addOption(json())
  .action(lazily(async () => (await import('./check.ts')).checkCommand));

program
  .command('demo')
  .description('a node with real servers behind it, on this machine, without privilege')
  .option('--scenario', 'play an incident under load, and end')
  .option('--data <dir>', 'keep configuration and journal there')
  .addOption(json())
  .action(async (options: { scenario?: boolean; data?: string; json?: boolean }) => {
    const { demoCommand } = await import('../demo/demo.ts');
    await demoCommand(options);
  });

program
  .command('status')
  .description('nodes, frontends, pools, servers and journal')
  .option('--node <name>', 'of another node of the cluster, asked over NATS')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./status.ts')).statusCommand));

const local = () =>
  new Option('--local', 'only on the node that is asked; with NATS away the cluster is told when it is back');

const server = program.command('server').description('operators’ commands for one server, on all nodes of the cluster');
for (const [name, description] of [
  ['ready', 'let it take traffic'],
  ['drain', 'no new traffic; what it has goes on'],
  ['maintenance', 'no traffic and no checks'],
] as const) {
  server
    .command(name)
    .description(description)
    .argument('<pool/server>')
    .addOption(local())
    .addOption(api())
    .addOption(token())
    .addOption(json())
    .action(async (target: string, options) => {
      const { operate } = await import('./operate.ts');
      await operate(`server.${name}`, target, options);
    });
}
server
  .command('weight')
  .description('set its weight, 0 to 256')
  .argument('<pool/server>')
  .argument('<weight>', 'a whole number', (text) => {
    if (!/^\d+$/.test(text) || Number(text) > 256) throw new InvalidArgumentError('0 to 256 are allowed.');
    return Number(text);
  })
  .addOption(local())
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(async (target: string, weight: number, options) => {
    const { operate } = await import('./operate.ts');
    await operate('server.weight', target, options, { weight });
  });

const router = program.command('router').description('operators’ commands for one virtual router of one node');
for (const [name, description] of [
  ['demote', 'let another node be master: priority 1 from now on'],
  ['promote', 'take a demotion back; where there is none, take over: priority 254 until it is demoted'],
] as const) {
  router
    .command(name)
    .description(description)
    .argument('<router>')
    .option('--node <name>', 'on this node of the cluster, if need be when it returns; default: the one that is asked')
    .addOption(api())
    .addOption(token())
    .addOption(json())
    .action(async (target: string, options) => {
      const { operateRouter } = await import('./operate.ts');
      await operateRouter(`router.${name}`, target, options);
    });
}

program
  .command('reload')
  .description('let the nodes of the cluster read their configurations again')
  .option('--local', 'only the node that is asked')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./operate.ts')).reloadCommand));

const config = program.command('config').description('what the nodes of the cluster share');
config
  .command('push')
  .description('check it on every node, store it, and apply it on one node after another, backups first')
  .argument('[file]')
  .option('--overlay <node=file>', 'what is different on a node; `lb1=` takes it away', collect, [])
  .option('--message <text>', 'why')
  .option('--require-all', 'refuse while a node is away')
  .option('--resume', 'go on with what is stored, where it isn’t applied yet')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./config.ts')).pushCommand));
config
  .command('pull')
  .description('print the shared text')
  .option('--revision <n>', 'an old one', positive)
  .option('--node <name>', 'the overlay of this node instead')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./config.ts')).pullCommand));
config
  .command('history')
  .description('list the revisions, by whom, and how far each has come')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./config.ts')).historyCommand));
config
  .command('rollback')
  .description('push an old revision again')
  .argument('<revision>', 'its number', positive)
  .option('--message <text>', 'why')
  .option('--require-all', 'refuse while a node is away')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./config.ts')).rollbackCommand));

ofCluster(program.command('log'))
  .description('list records')
  .argument('[journal]', 'default: that of the running node')
  .option('-f, --follow', 'go on with what comes')
  .option('--actor <actor>', 'an actor, or a pattern such as server/*')
  .option('--type <type>', 'a type of event, or a pattern such as check.*')
  .option('--since <time>', '03:12, 2026-11-22T03:12:07Z, or 5m (ago)')
  .option('--until <time>')
  .option('--limit <n>', 'only the newest n', positive)
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./log.ts')).logCommand));

ofCluster(program.command('replay'))
  .description('show the transitions again, with the state at the end')
  .argument('[journal]')
  .option('--until <time>', 'up to this time')
  .option('--actor <actor>', 'only this actor’s transitions')
  .option('--step', 'wait for a key after each transition')
  .addOption(json())
  .action(lazily(async () => (await import('./replay.ts')).replayCommand));

ofCluster(program.command('verify'))
  .description('decide every record again; exit 1 at the first that comes out differently')
  .argument('[journal]')
  .addOption(json())
  .action(lazily(async () => (await import('./verify.ts')).verifyCommand));

ofCluster(program.command('explain'))
  .description('the chain of causes behind an actor’s state')
  .argument('<actor>', 'such as server/web/web1 or pool/web')
  .argument('[journal]', 'default: that of the running node')
  .option('--at <time>', 'at this time instead of now')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(lazily(async () => (await import('./explain.ts')).explainCommand));

ofCluster(program.command('whatif'))
  .description('the transitions under another configuration, beside the real ones')
  .argument('[journal]')
  .requiredOption('--config <file>', 'the other configuration')
  .option('--all', 'show what is the same, too')
  .addOption(json())
  .action(lazily(async () => (await import('./whatif.ts')).whatIfCommand));

program
  .command('graph')
  .description('draw a machine, or the system that a configuration makes')
  .argument('<machine|config>')
  .addOption(new Option('--format <format>', 'what to print').choices(['svg', 'mermaid', 'dot']).default('svg'))
  .option('-o, --output <file>', 'write to a file')
  .action(lazily(async () => (await import('./graph.ts')).graphCommand));

// Who reads our output has seen enough: `understudy log | head`.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  failWith(new UnderstudyError('USAGE', `standard output can't be written: ${error.message}`));
});

try {
  await program.parseAsync();
} catch (error) {
  // Help and version end here too, with status 0; everything else that commander refuses is wrong use.
  if (error instanceof CommanderError) process.exit(error.exitCode === 0 ? 0 : 2);
  failWith(error);
}
