/** Whether a node that was given another configuration carries it. */
import type { ActorState, ActorSystem } from '../../actors/system.ts';
import type { BackendServerContext } from '../../machines/backendServer.ts';

/** Listeners that open, and first checks: the longest time-out of a check that anybody would give is within it. */
const SETTLE_MS = 10_000;

/** States that ask for an operator. */
const TROUBLES: Record<string, string[]> = {
  listener: ['failed'],
  pool: ['exhausted', 'onBackups', 'panicking'],
  proxyWorker: ['crashed'],
  virtualAddress: ['failed'],
  vrrpRouter: ['fault'],
};

/** Actors that are in trouble, and in which. */
export const troublesOf = (system: ActorSystem): Map<string, string> =>
  new Map(
    [...system.all()].flatMap(({ id, machine, state }): [string, string][] => {
      const name = state.split('.')[0]!;
      return TROUBLES[machine]?.includes(name) === true ? [[id, `${id} is ${name}`]] : [];
    }),
  );

/** A listener that is just opening, or a server that nothing is known of yet. */
const isUndecided = ({ machine, state, context }: ActorState): boolean => {
  if (machine === 'listener') return state === 'opening';
  if (machine !== 'backendServer' || !(context as BackendServerContext).settings.checked) return false;
  const [health, admin] = state.split(',');
  return health === 'unchecked' && admin !== 'maintenance';
};

/** Null once everything has opened and nothing is in trouble that wasn't before; else what still is when the time is up. */
export const settled = (system: ActorSystem, before: ReadonlyMap<string, string>): Promise<string | null> => {
  const { promise, resolve } = Promise.withResolvers<string | null>();
  const fresh = () => [...troublesOf(system)].flatMap(([id, text]) => (before.has(id) ? [] : [text]));
  let due: NodeJS.Immediate | null = null;
  const finish = () => {
    clearTimeout(timer);
    if (due) clearImmediate(due);
    stop();
    const troubles = fresh();
    resolve(troubles.length === 0 ? null : troubles.join(', '));
  };
  const look = () => {
    due = null;
    if (fresh().length === 0 && ![...system.all()].some(isUndecided)) finish();
  };
  const timer = setTimeout(finish, SETTLE_MS);
  // Once the event has been to all whom it concerns: a server that falls is down before its pool has heard of it.
  const stop = system.onTransition(() => {
    due ??= setImmediate(look);
  });
  look();
  return promise;
};
