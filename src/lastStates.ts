/** What a node's own journal says when it starts: what operators wanted of servers and routers, and who was healthy. */
import { existsSync } from 'node:fs';
import type { BackendServerContext } from '../machines/backendServer.ts';
import type { CommandDeskContext } from '../machines/commandDesk.ts';
import type { RouterContext } from '../machines/vrrpRouter.ts';
import { decodedSteps, JournalReader } from './journal/reader.ts';
import { serverId } from './wiring.ts';
import { Replay } from './worlds/replay.ts';

export type LastServerState = {
  health: 'up' | 'down' | null;
  admin: 'ready' | 'drain' | 'maintenance';
  /** The operator's weight, where it is not the configured one of that time. */
  weight: { operator: number; configured: number } | null;
  /** Whether the configuration of that time had it disabled, where that is known. */
  disabled?: boolean;
};

export type RouterIntent = RouterContext['intent'];

/** By actor id. */
export type LastStates = {
  servers: Map<string, LastServerState>;
  routers: Map<string, RouterIntent>;
  /** What it knew of the cluster's commands; null when it had no cluster. */
  desk: CommandDeskContext | null;
};

/** Throws what reading an unusable journal throws; an empty or missing one says nothing. */
export const lastStates = (path: string): LastStates => {
  const states: LastStates = { servers: new Map(), routers: new Map(), desk: null };
  if (!existsSync(path)) return states;
  const reader = new JournalReader(path);
  try {
    const replay = new Replay(reader);
    // The end of the last run of the node, not of the whole file: seeking starts at its last checkpoint.
    for (const _ of replay.run({ seek: true })) continue;
    const disabled = disabledServers(reader);
    for (const actor of replay.actors.values()) {
      if (actor.machine === 'vrrpRouter')
        states.routers.set(actor.id, (actor.snapshot.context as RouterContext).intent);
      if (actor.machine === 'commandDesk') states.desk = actor.snapshot.context as CommandDeskContext;
      if (actor.machine !== 'backendServer') continue;
      const value = actor.snapshot.value as { health: string; admin: LastServerState['admin'] };
      const context = actor.snapshot.context as BackendServerContext;
      const isUp = value.health === 'up' || value.health === 'goingDown';
      const isDown = value.health === 'down' || value.health === 'goingUp';
      states.servers.set(actor.id, {
        health: isUp ? 'up' : isDown ? 'down' : null,
        admin: value.admin,
        weight:
          context.weight === context.settings.weight
            ? null
            : { operator: context.weight, configured: context.settings.weight },
        ...(disabled ? { disabled: disabled.has(actor.id) } : {}),
      });
    }
    return states;
  } finally {
    reader.close();
  }
};

type RecordedConfig = { backends?: Record<string, { servers: { name: string; disabled?: boolean }[] }> };

/** Those that the newest recorded configuration had disabled; null when retention has taken it. */
const disabledServers = (reader: JournalReader): Set<string> | null => {
  for (const row of reader.rows({ actor: 'node', newestFirst: true })) {
    if (row.type !== 'node.started' && row.type !== 'node.configured') continue;
    const { backends = {} } = (decodedSteps(row)[0]!.event['config'] ?? {}) as RecordedConfig;
    return new Set(
      Object.entries(backends).flatMap(([pool, { servers }]) =>
        servers.filter(({ disabled }) => disabled === true).map(({ name }) => serverId(pool, name)),
      ),
    );
  }
  return null;
};

/** The operator's word that makes a router want this; null when it wants nothing. */
export const wordFor = (intent: RouterIntent | undefined): { type: string; restored: true } | null =>
  intent === 'demoted' || intent === 'promoted'
    ? { type: `operator.${intent === 'demoted' ? 'demote' : 'promote'}`, restored: true }
    : null;
