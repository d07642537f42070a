import { JournalReader } from '../journal/reader.ts';
import { loadOrThrow } from '../run.ts';
import { isoTime } from '../journal/view.ts';
import { formatClock, formatDateTime } from '../time.ts';
import { whatIf } from '../worlds/whatif.ts';
import type { WhatIf, WhatIfTransition } from '../worlds/whatif.ts';
import { neededJournal } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { bold, dim, green, print, printJson, red, table } from './output.ts';

/** A timer fires a little late in the real world and exactly in the virtual one: so far apart, it is the same event. */
const SAME_TIME_US = 250_000;

type Pair = { timeUs: number; actor: string; real: WhatIfTransition | null; would: WhatIfTransition | null };

type Options = ClusterOptions & { config: string; all?: boolean; json?: boolean };

export const whatIfCommand = async (journal: string | undefined, options: Options): Promise<void> => {
  const { config } = loadOrThrow(options.config);
  const reader = new JournalReader(await neededJournal(journal, options));
  const result = whatIf(reader, config);
  reader.close();
  const pairs = pair(result);
  const differing = pairs.filter(({ real, would }) => !real || !would);
  if (options.json === true) {
    printJson({
      from: isoTime(result.fromUs),
      until: isoTime(result.untilUs),
      differences: differing.length,
      rows: pairs.map(({ timeUs, actor, real, would }) => ({
        time: isoTime(timeUs),
        actor,
        real: real?.state ?? null,
        whatIf: would?.state ?? null,
      })),
      unobserved: result.unobserved,
      assumed: result.assumed,
      untold: result.untold,
    });
    return;
  }
  const shown = options.all === true ? pairs : differing;
  print(
    `${formatDateTime(result.fromUs)} to ${formatClock(result.untilUs)}: ${result.real.length} transitions really, ${result.would.length} with ${options.config}`,
  );
  if (shown.length > 0) {
    print('');
    print(
      table(
        ['TIME', 'ACTOR', 'REALLY', 'WHAT IF'],
        shown.map(({ timeUs, actor, real, would }) => [
          formatClock(timeUs),
          actor,
          real?.state ?? '–',
          would?.state ?? '–',
        ]),
      ),
    );
  }
  print('');
  for (const line of summary(result)) print(line);
  for (const text of result.assumed) print(dim(`Assumed, as a backup's word is in no journal: ${text}`));
  for (const text of result.untold) print(dim(`${text}.`));
  for (const actor of result.unobserved) print(dim(`${actor}: ${unobservedText(actor)}, so nothing can be said`));
};

const unobservedText = (actor: string): string => {
  if (actor.startsWith('server/')) return 'the journal has no probe of it';
  if (actor.startsWith('observer/')) return 'its traffic was not observed';
  return actor.startsWith('tracker/') ? 'the journal has no look at it' : 'the journal knows nothing of it';
};

/** The same actor entering the same state at about the same time is one row. */
const pair = ({ real, would }: WhatIf): Pair[] => {
  const pairs: Pair[] = real.map((transition) => ({
    timeUs: transition.timeUs,
    actor: transition.actor,
    real: transition,
    would: null,
  }));
  const waiting = new Map<string, Pair[]>();
  const keyOf = ({ actor, state }: WhatIfTransition) => `${actor} ${state}`;
  for (const one of pairs) {
    const key = keyOf(one.real!);
    const known = waiting.get(key);
    if (known) known.push(one);
    else waiting.set(key, [one]);
  }
  for (const transition of would) {
    const candidates = waiting.get(keyOf(transition)) ?? [];
    // Both are in order of time: what is too early for this one is too early for all that follow.
    while (candidates[0] && candidates[0].timeUs < transition.timeUs - SAME_TIME_US) candidates.shift();
    const match = candidates[0];
    if (match && match.timeUs <= transition.timeUs + SAME_TIME_US) {
      match.would = transition;
      candidates.shift();
    } else pairs.push({ timeUs: transition.timeUs, actor: transition.actor, real: null, would: transition });
  }
  return pairs.sort((a, b) => a.timeUs - b.timeUs);
};

/** What everybody wants to know first: how often routers would have changed, and servers been removed. */
const summary = (result: WhatIf): string[] => [
  ...routersSummary(result),
  ...serversSummary(result),
  ...ejectionsSummary(result),
];

const routersSummary = ({ real, would }: WhatIf): string[] => {
  const routers = [...new Set([...real, ...would].map(({ actor }) => actor))]
    .filter((actor) => actor.startsWith('router/'))
    .sort();
  return routers.map((router) => {
    const count = (transitions: WhatIfTransition[], state?: string) =>
      transitions.filter((one) => one.actor === router && (state === undefined || one.state === state)).length;
    // Its start is no change of state.
    const changes = (transitions: WhatIfTransition[]) => count(transitions) - count(transitions, 'initialize');
    const text = `${router}: changed state ${times(changes(real))} really, ${times(changes(would))} with this configuration; became master ${times(count(real, 'master'))} really, ${times(count(would, 'master'))}`;
    if (changes(real) === changes(would)) return text;
    return bold(changes(would) < changes(real) ? green(text) : red(text));
  });
};

const ejectionsSummary = ({ real, would }: WhatIf): string[] => {
  const observers = [...new Set([...real, ...would].map(({ actor }) => actor))]
    .filter((actor) => actor.startsWith('observer/'))
    .sort();
  const ejections = (transitions: WhatIfTransition[], observer: string) =>
    transitions.filter(({ actor, state }) => actor === observer && state === 'ejected').length;
  return observers.flatMap((observer) => {
    const really = ejections(real, observer);
    const wouldBe = ejections(would, observer);
    if (really === wouldBe) return [];
    const server = observer.replace('observer/', 'server/');
    const text = `${server}: ejected ${times(really)} really, ${times(wouldBe)} with this configuration`;
    return [bold(wouldBe < really ? green(text) : red(text))];
  });
};

const serversSummary = ({ real, would }: WhatIf): string[] => {
  const servers = [...new Set([...real, ...would].map(({ actor }) => actor))]
    .filter((actor) => actor.startsWith('server/'))
    .sort();
  const downs = (transitions: WhatIfTransition[], server: string) => {
    let count = 0;
    let last = '';
    for (const { actor, state } of transitions) {
      if (actor !== server) continue;
      const [health = ''] = state.split(',');
      if (health === 'down' && last !== 'down' && last !== 'goingUp') count++;
      last = health;
    }
    return count;
  };
  return servers.flatMap((server) => {
    const really = downs(real, server);
    const wouldBe = downs(would, server);
    if (really === wouldBe) return [];
    const text = `${server}: marked down ${times(really)} really, ${times(wouldBe)} with this configuration`;
    return [bold(wouldBe < really ? green(text) : red(text))];
  });
};

const times = (count: number): string => ['never', 'once', 'twice'][count] ?? `${count} times`;
