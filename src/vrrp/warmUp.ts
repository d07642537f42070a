/**
 * A takeover is what a node does once in months, and the first one would find its code not compiled yet: 5 ms, as much as
 * all the rest of it. So one is played on scratch actors when the node starts, and the calls of the kernel are made to
 * interfaces that there are none.
 */
import { VirtualClock } from '../../actors/clock.ts';
import { seededRandom } from '../../actors/random.ts';
import { ActorSystem } from '../../actors/system.ts';
import { machines } from '../../machines/index.ts';
import type { PacketSocket } from '../net/packetSocket.ts';
import type { RouteNetlink } from '../net/rtnetlink.ts';
import { gratuitousArp, unsolicitedNeighbourAdvertisement } from './announcement.ts';

/** V8 compiles to bytecode at the first round, and has optimised what matters well before the last. */
const ROUNDS = 50;
const NO_INTERFACE = 2 ** 31 - 1;
const PEER = { source: '192.0.2.2', key: 'c0000202', advertMs: 100, differences: [] };

export const warmUp = (netlink: RouteNetlink, packets: PacketSocket | null): void => {
  const clock = new VirtualClock({ wallUs: 0, monoUs: 0 });
  const system = new ActorSystem({
    clock,
    random: seededRandom(1),
    recorder: { append: () => ({ seq: null }) },
    machines,
    hands: {
      vrrpRouter: {
        look: (_: never, actor) => actor.send({ type: 'looked', lateMs: 0, silentMs: 0 } as { type: string }),
      },
      virtualAddress: {
        addAddress: (_: never, actor) => actor.send({ type: 'address.added' }),
        removeAddress: (_: never, actor) => actor.send({ type: 'address.removed' }),
      },
    },
    onFault: ({ error }) => {
      throw error;
    },
  });
  const settings = {
    ...{ version: 3, vrid: 1, priority: 100, advertMs: 100, preempt: true, preemptDelayMs: 0, startDelayMs: 0 },
    ...{ addresses: ['address/scratch/192.0.2.1'], track: [], group: null },
  };
  const announcing = { repeat: 5, delayMs: 5000, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 };
  system.start('address/scratch/192.0.2.1', 'virtualAddress', {
    router: 'router/scratch',
    address: '192.0.2.1',
    settings: announcing,
  });
  system.start('router/scratch', 'vrrpRouter', { name: 'scratch', settings });
  const hear = (priority: number) =>
    system.send('router/scratch', { type: 'advert.received', priority, ...PEER } as { type: string });
  system.send('router/scratch', { type: 'interface.up', address: '192.0.2.3', key: 'c0000203' } as { type: string });
  for (let round = 0; round < ROUNDS; round++) {
    hear(200);
    const deadlineUs = system.nextDeadlineUs();
    if (deadlineUs !== null) clock.advanceTo(deadlineUs);
    system.fireDue();
    hear(50);
    hear(200);
    const address = { interfaceIndex: NO_INTERFACE, family: 'ipv4', address: '192.0.2.1', prefixLength: 32 } as const;
    netlink.addAddress({ ...address, nodad: true, noPrefixRoute: false, validSeconds: 1 });
    netlink.removeAddress(address);
    packets?.send(NO_INTERFACE, gratuitousArp('192.0.2.1', '00:00:5e:00:01:01'));
    unsolicitedNeighbourAdvertisement('fe80::1', '00:00:5e:00:02:01');
  }
};
