/** The command line: names, arguments and options. What each command does stands in a file of its own. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { UnderstudyError } from '../errors.ts';
import { version } from '../version.ts';
import { checkCommand } from './check.ts';
import { explainCommand } from './explain.ts';
import { graphCommand } from './graph.ts';
import { logCommand } from './log.ts';
import { operate, operateRouter, reloadCommand } from './operate.ts';
import { failWith } from './output.ts';
import { replayCommand, verifyCommand } from './replay.ts';
import { statusCommand } from './status.ts';
import { whatIfCommand } from './whatif.ts';

const program = new Command('understudy')
  .description('A high-availability load balancer whose every decision is a recorded state transition.')
  .version(version)
  .showHelpAfterError('(understudy --help lists the commands)')
  .exitOverride();

const positive = (text: string): number => {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError('A whole number from 1 is allowed.');
  return Number(text);
};

const json = () => new Option('--json', 'print JSON');
const api = () => new Option('--api <url>', 'the node’s API').env('UNDERSTUDY_API').default('http://127.0.0.1:8404');
const token = () => new Option('--token <token>', 'default: read from the node’s own file').env('UNDERSTUDY_TOKEN');

program
  .command('run')
  .description('run a node in the foreground; SIGTERM drains and leaves, SIGHUP reloads')
  .argument('<config>')
  .action(async (file: string) => {
    const { runNode } = await import('../run.ts');
    await runNode(file);
    process.exit(0);
  });

program
  .command('check')
  .description('validate a configuration; prints each problem with its place')
  .argument('[config]')
  .option('--schema', 'print the JSON Schema of the configuration instead, for editors')
  .addOption(json())
  .action(checkCommand);

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
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(statusCommand);

const server = program.command('server').description('operators’ commands for one server');
for (const [name, description] of [
  ['ready', 'let it take traffic'],
  ['drain', 'no new traffic; what it has goes on'],
  ['maintenance', 'no traffic and no checks'],
] as const) {
  server
    .command(name)
    .description(description)
    .argument('<pool/server>')
    .addOption(api())
    .addOption(token())
    .addOption(json())
    .action((target: string, options) => operate(`server.${name}`, target, options));
}
server
  .command('weight')
  .description('set its weight, 0 to 256')
  .argument('<pool/server>')
  .argument('<weight>', 'a whole number', (text) => {
    if (!/^\d+$/.test(text) || Number(text) > 256) throw new InvalidArgumentError('0 to 256 are allowed.');
    return Number(text);
  })
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action((target: string, weight: number, options) => operate('server.weight', target, options, { weight }));

const router = program.command('router').description('operators’ commands for one virtual router of this node');
for (const [name, description] of [
  ['demote', 'let another node be master: priority 1 from now on'],
  ['promote', 'take a demotion back; where there is none, take over: priority 254 until it is demoted'],
] as const) {
  router
    .command(name)
    .description(description)
    .argument('<router>')
    .addOption(api())
    .addOption(token())
    .addOption(json())
    .action((target: string, options) => operateRouter(`router.${name}`, target, options));
}

program
  .command('reload')
  .description('let a node read its configuration again')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(reloadCommand);

program
  .command('log')
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
  .action(logCommand);

program
  .command('replay')
  .description('show the transitions again, with the state at the end')
  .argument('<journal>')
  .option('--until <time>', 'up to this time')
  .option('--actor <actor>', 'only this actor’s transitions')
  .option('--step', 'wait for a key after each transition')
  .addOption(json())
  .action(replayCommand);

program
  .command('verify')
  .description('decide every record again; exit 1 at the first that comes out differently')
  .argument('<journal>')
  .addOption(json())
  .action(verifyCommand);

program
  .command('explain')
  .description('the chain of causes behind an actor’s state')
  .argument('<actor>', 'such as server/web/web1 or pool/web')
  .argument('[journal]', 'default: that of the running node')
  .option('--at <time>', 'at this time instead of now')
  .addOption(api())
  .addOption(token())
  .addOption(json())
  .action(explainCommand);

program
  .command('whatif')
  .description('the transitions under another configuration, beside the real ones')
  .argument('<journal>')
  .requiredOption('--config <file>', 'the other configuration')
  .option('--all', 'show what is the same, too')
  .addOption(json())
  .action(whatIfCommand);

program
  .command('graph')
  .description('draw a machine, or the system that a configuration makes')
  .argument('<machine|config>')
  .addOption(new Option('--format <format>', 'what to print').choices(['svg', 'mermaid', 'dot']).default('svg'))
  .option('-o, --output <file>', 'write to a file')
  .action(graphCommand);

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
