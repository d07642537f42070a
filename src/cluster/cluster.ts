/** A node's part in its cluster: one bus, and what is done over it. */
import type { Hands } from '../../actors/system.ts';
import type { NatsPort } from '../vrrp/natsWire.ts';
import { Ask } from './ask.ts';
import { ClusterCommands } from './clusterCommands.ts';
import { CourierHost } from './courierHost.ts';
import { Members } from './members.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';
import { SharedConfig } from './sharedConfig.ts';
import { SharedHealth } from './sharedHealth.ts';

export class Cluster {
  readonly courier: CourierHost;
  readonly members: Members;
  readonly ask: Ask;
  readonly commands: ClusterCommands;
  readonly health: SharedHealth;
  readonly sharedConfig: SharedConfig;
  readonly #ports: ClusterPorts;
  readonly #parts: ClusterPart[];

  constructor(ports: ClusterPorts) {
    this.#ports = ports;
    this.courier = new CourierHost(ports);
    this.members = new Members(ports);
    this.members.contribute(() => {
      const state = ports.system().get('courier')?.state ?? 'offline';
      return { courier: { state, behind: this.courier.figures().behind } };
    });
    this.ask = new Ask(ports);
    this.commands = new ClusterCommands(ports, this.members);
    this.health = new SharedHealth(ports, this.members);
    this.sharedConfig = new SharedConfig(ports, this.members, this.ask);
    this.#parts = [this.courier, this.members, this.ask, this.commands, this.health, this.sharedConfig];
  }

  get bus() {
    return this.#ports.bus;
  }

  /** What routers need that advertise over NATS. */
  get natsPort(): NatsPort {
    const { bus, subjects, node } = this.#ports;
    return { bus, subjects, node };
  }

  get hands(): Record<string, Hands> {
    return Object.assign({}, ...this.#parts.map(({ hands }) => hands)) as Record<string, Hands>;
  }

  start(): void {
    const { bus, log } = this.#ports;
    bus.onStatus((status) => {
      if (status.connected) log.info(`NATS: connected to ${status.server}, version ${status.version}`);
      else log.warn(`NATS is away: ${status.message}`);
    });
    for (const part of this.#parts) part.start();
  }

  /** Before the journal closes: what follows is only shipped. */
  async stop(): Promise<void> {
    for (const part of this.#parts.toReversed()) await part.stop();
  }

  /** After the journal has closed: its last records are shipped, if NATS is there. */
  async leave(): Promise<void> {
    await this.#ports.bus.close();
  }
}
