/** Routers in `understudy status`. */
import type { RouterView } from '../api/routers.ts';
import type { StateView } from '../api/state.ts';
import { formatSpan } from '../time.ts';
import { trackerName } from '../vrrp/reasons.ts';
import { bold, dim, green, red, table, yellow } from './output.ts';

const spanSince = (since: string, now: string): string => formatSpan((Date.parse(now) - Date.parse(since)) * 1000);

/** Nothing where a node has no routers. */
export const formatRouters = ({ routers, syncGroups, node }: StateView): string[] => {
  if (routers.length === 0) return [];
  const head = ['ROUTER', 'VRID', 'STATE', 'SINCE', 'PRIORITY', 'MASTER', 'ADDRESSES'];
  const [titles = '', ...rows] = table(
    head,
    routers.map((router) => [
      router.name,
      String(router.vrid),
      router.state.toUpperCase(),
      spanSince(router.since, node.now),
      router.priority.text,
      masterText(router, node.name),
      router.addresses.map(({ address, state }) => (isQuiet(state) ? address : `${address} (${state})`)).join(', '),
    ]),
  ).split('\n');
  return [
    '',
    titles,
    ...routers.flatMap((router, index) => [colored(router, rows[index]!), ...details(router)]),
    ...syncGroups.map(
      ({ name, state, since, routers: members, waitsFor }) =>
        `${bold(`Sync group ${name}`)}: ${state.toUpperCase()} for ${spanSince(since, node.now)} (${members.join(', ')})${waitsFor.length > 0 ? `; waits for ${waitsFor.join(', ')}` : ''}`,
    ),
  ];
};

/** Where the address is, or isn't, goes with the state of the router. */
const isQuiet = (state: string): boolean => ['absent', 'announcing', 'held'].includes(state);

const masterText = ({ master }: RouterView, node: string): string => {
  if (!master) return 'not known';
  return master.self ? `${node} (this node)` : `${master.address} (${master.priority})`;
};

const colored = (router: RouterView, row: string): string => {
  // Only the word itself: a whole line in color says nothing.
  const word = router.state.toUpperCase();
  const color = { master: green, backup: (text: string) => text, fault: red, initialize: yellow }[router.state];
  return row.replace(new RegExp(` ${word}(?= )`), ` ${color(word)}`);
};

const details = (router: RouterView): string[] => [
  // Faults have lines of their own.
  ...(router.reason.code === 'fault' ? [] : [dim(`  because ${router.reason.text}`)]),
  ...router.faults.map(({ what, message }) =>
    message === null ? yellow(`  waits for: ${what}`) : red(`  ! ${what}: ${message === '' ? 'down' : message}`),
  ),
  ...router.trackers.map(({ id, state, weight, message }) => {
    const line = `  tracks ${trackerName(id)}: ${state}${weight === 0 ? '' : `, weight ${weight}`}${message === '' ? '' : ` (${message})`}`;
    return state === 'up' ? dim(line) : yellow(line);
  }),
];
