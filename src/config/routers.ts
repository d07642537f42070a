/** The part of the configuration that keepalived's users know: virtual routers, what they track, and sync groups. */
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { z } from 'zod';
import { duration, name, secret } from './values.ts';

/** Version 3 counts in centiseconds, 12 bits (RFC 9568 section 5.2.7); version 2 in whole seconds, 8 bits. */
const SHORTEST_ADVERT_MS = 10;
const LONGEST_ADVERT_MS = 255_000;
/** As many as an advert's count can say. */
const MAX_ADDRESSES = 255;
/** Interface names are 15 bytes at most (IFNAMSIZ). */
const INTERFACE = /^[^\s/:]{1,15}$/;
/** IANA has no port for VRRP in UDP; 1112 is VRRP's protocol number with a thousand. */
const DEFAULT_UDP_PORT = 1112;

const interfaceName = z
  .string()
  .regex(INTERFACE, { error: 'not the name of an interface; allowed are up to 15 letters without space, / and :' });

const ip = z.string().refine((text) => isIP(text) !== 0, { error: 'not an IP address' });

const family = (address: string): 'ipv4' | 'ipv6' => ipaddr.parse(address).kind();

const command = z.array(z.string().min(1)).min(1);

/** `10.9.0.100/24`; without a length it is /32, and /128 of IPv6, as keepalived has it. */
const prefixed = z.string().transform((text, context) => {
  const [host = '', length, ...more] = text.split('/');
  const bits = isIP(host) === 4 ? 32 : 128;
  const prefixLength = length === undefined ? bits : /^\d{1,3}$/.test(length) ? Number(length) : -1;
  if (isIP(host) === 0 || host.includes('%') || more.length > 0 || prefixLength < 0 || prefixLength > bits) {
    context.addIssue({
      code: 'custom',
      message: `${JSON.stringify(text)} is not an address; allowed are forms like 10.9.0.100/24, fe80::100/64`,
    });
    return z.NEVER;
  }
  return { address: ipaddr.parse(host).toString(), prefixLength, family: family(host) };
});

const virtualAddress = z.union([
  prefixed.transform((parsed) => ({ ...parsed, interface: undefined, label: undefined })),
  z
    .strictObject({
      address: prefixed,
      interface: interfaceName.optional().describe('Default: the router’s.'),
      label: z
        .string()
        .regex(/^[^\s/]{1,15}$/, { error: 'a label has up to 15 characters' })
        .optional()
        .describe('IPv4 only: as `ip address` shows it, such as eth0:1.'),
    })
    .transform(({ address, ...rest }) => ({ ...address, interface: rest.interface, label: rest.label })),
]);

const peer = z.string().transform((text, context) => {
  const match = /^(?:\[([^\]]+)\]|([^\s[\]]+?))(?::(\d{1,5}))?$/.exec(text.trim());
  // An IPv6 address without brackets has no port.
  const host = isIP(text.trim()) === 6 ? text.trim() : (match?.[1] ?? match?.[2] ?? '');
  const port = isIP(text.trim()) === 6 || match?.[3] === undefined ? DEFAULT_UDP_PORT : Number(match[3]);
  if (isIP(host) !== 0 && port >= 1 && port <= 65_535) return { host: ipaddr.parse(host).toString(), port };
  context.addIssue({
    code: 'custom',
    message: `${JSON.stringify(text)} is not a peer; allowed are forms like 10.9.0.12, 10.9.0.12:1112, [fd00::12]:1112`,
  });
  return z.NEVER;
});

const authentication = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('pass'),
    secret: secret.describe('Version 2: the first 8 bytes count, and travel in clear.'),
  }),
  z.strictObject({ type: z.literal('ah'), secret: secret.describe('Version 2, IPv4: HMAC-MD5-96 over the packet.') }),
  z.strictObject({
    type: z.literal('hmac'),
    keys: z
      .array(z.strictObject({ id: z.int().min(0).max(255), secret }))
      .min(1)
      .max(8)
      .describe('Version 3, as keepalived 2.4: the first key signs, all verify.'),
  }),
  z.strictObject({
    type: z.literal('sealed'),
    secret: secret.describe('Among Understudy nodes: encrypted and authenticated.'),
  }),
]);

const looks = {
  interval: duration({ min: 10 }).prefault('1s').describe('From the end of one look to the start of the next.'),
  rise: z.int().min(1).max(1000).default(1).describe('Good looks in a row that bring it up.'),
  fall: z.int().min(1).max(1000).default(1).describe('Bad looks in a row that bring it down.'),
};

const effect = {
  weight: z
    .int()
    .min(-253)
    .max(253)
    .default(0)
    .describe('Added to the priority: above 0 while up, below 0 while down. 0: FAULT while down.'),
  reverse: z
    .boolean()
    .default(false)
    .describe('The weight counts with the other sign; without one, FAULT while it is up.'),
};

const track = z.union([
  z.strictObject({ interface: interfaceName, ...effect }),
  z.strictObject({
    sight: z
      .literal(true)
      .describe(
        'Whether this node sees any server of shared checks. Every router tracks it, by FAULT, unless it says how.',
      ),
    ...effect,
  }),
  z.strictObject({
    pool: z.string(),
    atLeast: z.int().min(1).default(1).describe('Usable servers that the pool needs to count as up.'),
    ...effect,
  }),
  z.strictObject({
    script: command.describe('Program and arguments; exit status 0 is up.'),
    name: name.optional().describe('Default: the program’s name.'),
    timeout: duration({ min: 10 }).prefault('1s'),
    user: z.string().optional().describe('Default when run as root: keepalived_script, or else nobody.'),
    ...looks,
    ...effect,
  }),
  z.strictObject({
    process: z.string().min(1).describe('Name of a program, as `ps -o comm` shows it.'),
    min: z.int().min(0).default(1).describe('Processes at least.'),
    max: z.int().min(0).optional().describe('Processes at most.'),
    ...looks,
    ...effect,
  }),
  z.strictObject({
    file: z.string().min(1).describe('Holds a number, −254 to 254, that is multiplied by the weight.'),
    ...looks,
    ...effect,
    weight: z.int().min(-253).max(253).default(1),
  }),
]);

const notify = z.strictObject({
  command: command.optional().describe('At every change: GROUP|INSTANCE name STATE priority are appended.'),
  master: command.optional(),
  backup: command.optional(),
  fault: command.optional(),
  stop: command.optional(),
  timeout: duration({ min: 10 }).prefault('10s').describe('Then it is killed, and the next one runs.'),
  user: z.string().optional().describe('Default when run as root: keepalived_script, or else nobody.'),
});

const router = z.strictObject({
  vrid: z.int().min(1).max(255),
  interface: interfaceName.optional().describe('Needed for multicast and unicast, and for addresses to be added to.'),
  version: z.union([z.literal(2), z.literal(3)]).default(3),
  priority: z
    .int()
    .min(1)
    .max(255)
    .default(100)
    .describe('255: the owner of the addresses; its interface needs one more address, to send from.'),
  advertise: duration({ min: SHORTEST_ADVERT_MS, max: LONGEST_ADVERT_MS })
    .prefault('1s')
    .describe('Advertisement interval. A master is missed after three of them and a little.'),
  preempt: z.boolean().default(true).describe('A higher priority takes over from a lower one.'),
  preemptDelay: duration().prefault('0').describe('How long a lower-priority master is left alone first.'),
  startDelay: duration().prefault('0').describe('Wait after the start, so that links can settle.'),
  addresses: z.array(virtualAddress).min(1).max(MAX_ADDRESSES),
  transport: z
    .enum(['multicast', 'unicast', 'udp', 'nats'])
    .default('multicast')
    .describe(
      'nats: adverts over the bus, an election among the nodes that NATS joins. It needs no list of peers and no privilege, but NATS: see onBusLoss. Peers of other make, and nodes of another cluster, are not heard.',
    ),
  onBusLoss: z
    .enum(['keep', 'release'])
    .default('keep')
    .describe(
      'Of nats: what a master does that is cut off from NATS. keep: it keeps its addresses, so that they are served while NATS is down; if only its own connection is broken, another node becomes master too, until it is joined again. release: it gives them up before others take them, so there are never two, and none while NATS is down. A router that is not master is in FAULT then.',
    ),
  peers: z
    .array(peer)
    .default([])
    .describe('Of unicast and udp: every other node. Over nats whoever is in the cluster is heard.'),
  source: ip.optional().describe('Default: the interface’s first address, of IPv6 the link-local one.'),
  port: z.int().min(1).max(65_535).default(DEFAULT_UDP_PORT).describe('Of udp: where adverts are heard.'),
  minTtl: z
    .int()
    .min(1)
    .max(255)
    .optional()
    .describe('Of received adverts, in unicast and udp. Default: 255; of udp and of IPv6 unicast 1.'),
  checksum: z
    .enum(['rfc9568', 'pseudoHeader'])
    .optional()
    .describe('Version 3, IPv4: what is sent. Default: as the peer sends it.'),
  authentication: authentication.optional(),
  accept: z.boolean().default(true).describe('Serve the addresses while master, also when not their owner.'),
  virtualMac: z.boolean().default(false).describe('00-00-5E-00-01-VRID on a macvlan of its own.'),
  announce: z
    .strictObject({
      repeat: z.int().min(1).max(100).default(5).describe('Gratuitous ARPs or neighbour advertisements in a row.'),
      delay: duration().prefault('5s').describe('The same again after this time; 0: not again.'),
      refresh: duration().prefault('0').describe('From then on this often; 0: never.'),
      refreshRepeat: z.int().min(1).max(100).default(1),
    })
    .prefault({}),
  track: z.array(track).max(64).default([]),
  notify: notify.optional(),
});

const syncGroup = z.strictObject({
  routers: z.array(z.string()).min(2).describe('They become master and leave together.'),
  notify: notify.optional(),
});

export const routersSchema = {
  routers: z.record(name, router).default({}),
  syncGroups: z.record(name, syncGroup).default({}),
  notifyPipe: z
    .strictObject({
      path: z.string().min(1),
      format: z.enum(['keepalived', 'json']).default('keepalived').describe('json carries reason and evidence too.'),
    })
    .optional()
    .describe('A FIFO that gets one line for each change of state.'),
};

export type RouterConfig = z.output<typeof router>;
export type VirtualAddressConfig = RouterConfig['addresses'][number];
export type TrackConfig = RouterConfig['track'][number];
export type SyncGroupConfig = z.output<typeof syncGroup>;
export type NotifyConfig = z.output<typeof notify>;
export type AuthenticationConfig = z.output<typeof authentication>;
