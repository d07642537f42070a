/** Routers, their addresses, trackers and sync groups, as `GET /api/state` shows them and `status` prints them. */
import type { SyncGroupContext } from '../../machines/syncGroup.ts';
import type { TrackerContext } from '../../machines/tracker.ts';
import { effectivePriority, priorityParts } from '../../machines/vrrpRouter.ts';
import type { PriorityPart, Reason, RouterContext } from '../../machines/vrrpRouter.ts';
import type { RouterConfig } from '../config/routers.ts';
import { isoTime } from '../journal/view.ts';
import type { UnderstudyNode } from '../node.ts';
import {
  conflictText,
  differenceText,
  faultName,
  faultsText,
  phaseOf,
  priorityText,
  reasonText,
} from '../vrrp/reasons.ts';
import type { RouterPhase } from '../vrrp/reasons.ts';
import { addressId, groupId, isHeldByBinding, routerId } from '../vrrp/wiring.ts';

export type RouterView = {
  name: string;
  vrid: number;
  version: 2 | 3;
  transport: string;
  interface: string | null;
  /** Own address that adverts are sent from; null while it is not known. */
  source: string | null;
  state: RouterPhase;
  /** With what goes on within it: `backup.deciding`. */
  rawState: string;
  since: string;
  /** `text`: `150 − 60 (pool web has no usable server) = 90`. */
  priority: {
    configured: number;
    effective: number;
    parts: PriorityPart[];
    intent: RouterContext['intent'];
    text: string;
  };
  /** Who has the addresses, as this node sees it; null when it knows of nobody. */
  master: { self: boolean; address: string | null; priority: number } | null;
  /** `interface` is null for one that is held by binding it. */
  addresses: { address: string; interface: string | null; state: string }[];
  /** Why it is in its state: a code, the same in a sentence, and the evidence of that moment. */
  reason: Reason & { text: string };
  syncGroup: string | null;
  /** What keeps it from taking part. `message` is null for what is only not known yet. */
  faults: { what: string; message: string | null }[];
  /** Live peers whose adverts are discarded, and so both are master. */
  conflicts: { peer: string; kind: string; field: string; own: string; theirs: string }[];
  /** Peers whose adverts are accepted, but say something else than our configuration. */
  differences: { peer: string; field: string; own: string; theirs: string }[];
  /** Null until its sockets have been open. */
  counters: {
    sent: number;
    priorityZeroSent: number;
    received: number;
    sendFailures: number;
    discarded: Record<string, number>;
  } | null;
  trackers: { id: string; kind: string; state: string; message: string; value: number | null; weight: number }[];
};

export type SyncGroupView = { name: string; state: string; since: string; routers: string[]; waitsFor: string[] };

export const routersOf = (node: UnderstudyNode): RouterView[] =>
  Object.entries(node.config.routers).flatMap(([name, config]) => {
    const actor = node.system.get(routerId(name));
    return actor ? [routerOf(node, name, config, actor.state, actor.context as RouterContext)] : [];
  });

const routerOf = (
  node: UnderstudyNode,
  name: string,
  config: RouterConfig,
  state: string,
  context: RouterContext,
): RouterView => {
  const { settings, reason, faults, conflicts, differences, intent } = context;
  const figures = node.vrrp.figures(name);
  return {
    name,
    vrid: config.vrid,
    version: config.version,
    transport: config.transport,
    interface: config.interface ?? null,
    source: node.vrrp.sourceOf(name),
    state: phaseOf(state),
    rawState: state,
    since: isoTime(node.tallies.sinceUs(routerId(name))),
    priority: {
      configured: settings.priority,
      effective: effectivePriority(context),
      parts: priorityParts(context),
      intent,
      text: priorityText(context),
    },
    master: masterOf(phaseOf(state), context),
    addresses: config.addresses.map((address) => ({
      address: `${address.address}/${address.prefixLength}`,
      interface: isHeldByBinding(address) ? null : (address.interface ?? config.interface ?? null),
      state: node.system.get(addressId(name, address.address))?.state ?? 'absent',
    })),
    reason: { ...reason, text: reasonText(reason) },
    syncGroup: settings.group === null ? null : settings.group.slice('group/'.length),
    faults: Object.entries(faults).map(([key, message]) => ({ what: faultName(key), message })),
    conflicts: Object.entries(conflicts).map(([peer, { kind, field, own, peer: theirs }]) => ({
      peer,
      kind,
      field,
      own,
      theirs,
    })),
    differences: Object.entries(differences).flatMap(([peer, list]) =>
      list.map(({ field, own, peer: theirs }) => ({ peer, field, own, theirs })),
    ),
    counters: figures && {
      sent: figures.sent,
      priorityZeroSent: figures.sentPriorityZero,
      received: figures.received,
      sendFailures: figures.sendFailures,
      discarded: { ...figures.discarded },
    },
    trackers: settings.track.flatMap(({ tracker, weight, reverse }) => {
      const actor = node.system.get(tracker);
      if (!actor) return [];
      const { message, value, settings: looked } = actor.context as TrackerContext;
      return [
        { id: tracker, kind: looked.kind, state: actor.state, message, value, weight: reverse ? -weight : weight },
      ];
    }),
  };
};

export const masterOf = (phase: RouterPhase, context: RouterContext): RouterView['master'] => {
  if (phase === 'master') return { self: true, address: context.address, priority: effectivePriority(context) };
  const heard = context.master ?? context.lower;
  return heard ? { self: false, address: heard.source, priority: heard.priority } : null;
};

export const syncGroupsOf = (node: UnderstudyNode): SyncGroupView[] =>
  Object.entries(node.config.syncGroups).flatMap(([name, { routers }]) => {
    const actor = node.system.get(groupId(name));
    if (!actor) return [];
    const { faulty } = actor.context as SyncGroupContext;
    const waitsFor = faulty.map((router) => router.slice('router/'.length));
    return [{ name, state: actor.state, since: isoTime(actor.sinceUs), routers, waitsFor }];
  });

/** What asks for an operator. */
export const routerProblems = (node: UnderstudyNode): string[] => {
  const problems: string[] = [];
  for (const { id, machine, state, context } of node.system.all()) {
    if (machine === 'virtualAddress' && state === 'failed') {
      const [, router = '', ...address] = id.split('/');
      problems.push(`router ${router}: its address ${address.join('/')} can't be added and is tried again`);
    }
    if (machine !== 'vrrpRouter') continue;
    const { name, faults, conflicts } = context as RouterContext;
    if (state === 'fault') problems.push(`router ${name} is in FAULT: ${faultsText(faults)}`);
    if (state === 'master' && typeof faults['bus'] === 'string')
      problems.push(
        `router ${name} is cut off from its peers and keeps its addresses: NATS is away (${faults['bus']})`,
      );
    for (const [peer, conflict] of Object.entries(conflicts))
      problems.push(`router ${name}: ${conflictText(peer, conflict)}`);
  }
  return problems;
};

/** What an operator may want to know, though nothing is wrong with it or it harms nobody at the moment. */
export const routerNotices = (node: UnderstudyNode): string[] => {
  const notices: string[] = [];
  for (const { machine, context } of node.system.all()) {
    if (machine !== 'vrrpRouter') continue;
    const { name, differences, intent } = context as RouterContext;
    if (intent !== 'none') notices.push(`router ${name} was ${intent} by an operator`);
    for (const [peer, list] of Object.entries(differences))
      for (const difference of list) notices.push(`router ${name}: ${differenceText(peer, difference)}`);
  }
  return notices;
};
