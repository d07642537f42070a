/** What a node's own journal says of its servers when it starts: what operators wanted, and how healthy they were. */
import { existsSync } from 'node:fs';
import type { BackendServerContext } from '../machines/backendServer.ts';
import { JournalReader } from './journal/reader.ts';
import { Replay } from './worlds/replay.ts';

export type LastServerState = {
  health: 'up' | 'down' | null;
  admin: 'ready' | 'drain' | 'maintenance';
  /** The operator's weight, where it is not the configured one. */
  weight: number | null;
};

/** By actor id. Throws what reading an unusable journal throws; an empty or missing one says nothing. */
export const lastServerStates = (path: string): Map<string, LastServerState> => {
  const states = new Map<string, LastServerState>();
  if (!existsSync(path)) return states;
  const reader = new JournalReader(path);
  try {
    const replay = new Replay(reader);
    // The end of the last run of the node, not of the whole file: seeking starts at its last checkpoint.
    for (const _ of replay.run({ seek: true })) continue;
    for (const actor of replay.actors.values()) {
      if (actor.machine !== 'backendServer') continue;
      const value = actor.snapshot.value as { health: string; admin: LastServerState['admin'] };
      const context = actor.snapshot.context as BackendServerContext;
      const isUp = value.health === 'up' || value.health === 'goingDown';
      const isDown = value.health === 'down' || value.health === 'goingUp';
      states.set(actor.id, {
        health: isUp ? 'up' : isDown ? 'down' : null,
        admin: value.admin,
        weight: context.weight === context.settings.weight ? null : context.weight,
      });
    }
    return states;
  } finally {
    reader.close();
  }
};
