/** What the parts of the cluster need of their node. */
import type { Logger } from 'pino';
import type { ActorSystem, Hands } from '../../actors/system.ts';
import type { Bus } from '../bus/bus.ts';
import type { Subjects } from '../bus/subjects.ts';
import type { SystemClock } from '../clock.ts';
import type { NatsConfig } from '../config/bus.ts';
import type { Config } from '../config/schema.ts';
import type { ConfigSource } from '../config/source.ts';
import type { Journal } from '../journal/journal.ts';
import type { Command, ReloadResult } from '../node.ts';

export type ClusterPorts = {
  bus: Bus;
  subjects: Subjects;
  /** This node's name, and its cluster's. */
  node: string;
  cluster: string;
  nats: NatsConfig;
  clock: SystemClock;
  journal: Journal;
  log: Logger;
  /** Of the control loop. */
  latenessP99Ms(): number;
  system(): ActorSystem;
  config(): Config;
  /** The actors of this node that a command is for, the one that it names first. @throws UnderstudyError NODE_REFUSED */
  targets(command: Command): string[];
  /** Where its configuration comes from; null where whoever runs the node has one of its own. */
  source: ConfigSource | null;
  /** @throws UnderstudyError with nothing changed */
  applyConfig(config: Config, text: string): Promise<ReloadResult>;
  /** Reads this node's own configuration again and applies it. @throws UnderstudyError */
  reload(): Promise<ReloadResult>;
};

/** One part: its hands are known before it starts, and it starts when the actors of the configuration have. */
export type ClusterPart = {
  readonly hands: Record<string, Hands>;
  start(): void;
  /** The node leaves, or hands over. */
  stop(): Promise<void>;
};
