/** How a node follows the cluster's commands, and where it differs from what the cluster wants. */
import type { OperatorCommand, StreamCommand } from '../../machines/commandDesk.ts';
import type { Difference } from '../cluster/clusterCommands.ts';
import { isoTime } from '../journal/view.ts';
import type { UnderstudyNode } from '../node.ts';
import { formatClock } from '../time.ts';

export type CommandsView = {
  /** `following` the cluster's stream, or `detached` from it. */
  state: string;
  /** Place of the last command that was taken from it. */
  sequence: number;
  trouble: { code: string; message: string } | null;
  /** Given here, and still to be told to the cluster. */
  pending: { command: string; time: string }[];
  /** Servers that are something else here than the cluster wants. */
  differences: { actor: string; cluster: string; here: string; text: string }[];
};

/** Null on the bus `memory`. */
export const commandsOf = ({ cluster }: UnderstudyNode): CommandsView | null => {
  if (!cluster) return null;
  const { pending, differences, ...rest } = cluster.commands.view();
  return {
    ...rest,
    pending: pending.map((one) => ({ command: commandText(one), time: isoTime(one.atUs) })),
    differences: differences.map((one) => ({
      actor: one.actor,
      cluster: wantText(one.cluster),
      here: wantText(one.here),
      text: differenceText(one),
    })),
  };
};

export const commandNotices = (node: UnderstudyNode): string[] => {
  const view = commandsOf(node);
  if (!view) return [];
  const { trouble, pending, differences } = view;
  // That NATS is away is told as what it is.
  const isOwnTrouble = trouble !== null && node.cluster?.bus.status.connected === true;
  return [
    ...(isOwnTrouble ? [`the cluster's commands can't be followed: ${trouble.message}`] : []),
    ...pending.map(({ command, time }) => `to be told to the cluster: ${command}, given at ${clock(time)}`),
    ...differences.map(({ text }) => text),
  ];
};

const clock = (time: string): string => formatClock(Date.parse(time) * 1000);

const commandText = ({ command }: StreamCommand): string =>
  command.type === 'reload' ? 'reload' : operatorText(command);

const operatorText = (command: OperatorCommand): string => {
  const words = command.type.replace('.', ' ');
  if ('router' in command) return `${words} ${command.router}`;
  const target = `${words} ${command.pool}/${command.server}`;
  return command.type === 'server.weight' ? `${target} ${command.weight}` : target;
};

const wantText = (want: { admin: string } | { weight: number }): string =>
  'admin' in want ? want.admin : `weight ${want.weight}`;

const differenceText = ({ actor, cluster, given, here, by }: Difference): string => {
  const name = actor.slice('server/'.length);
  const why = by
    ? by.pending
      ? `given here at ${formatClock(by.atUs)} while the cluster could not be reached`
      : `given for this node alone at ${formatClock(by.atUs)}`
    : 'which no command to the cluster has made it';
  const wanted = given
    ? `the cluster wants ${wantText(cluster)}, given on ${given.by} at ${formatClock(given.atUs)}`
    : `for the cluster it is ${wantText(cluster)}`;
  return `server ${name} is ${wantText(here)} here, ${why}; ${wanted}`;
};
