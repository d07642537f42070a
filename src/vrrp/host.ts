/**
 * What the routers of a node need of its machine, in one place: links, sockets, addresses, trackers, notify scripts and
 * the guard. It decides nothing; it is the hands of the machines `vrrpRouter`, `virtualAddress`, `tracker`, `syncGroup`.
 */
import { readFileSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';
import { dirname, join } from 'node:path';
import type { AddressAnswer } from '../../actors/virtualAddress.ts';
import { virtualAddressHands } from '../../actors/virtualAddress.ts';
import type { Observation } from '../../actors/tracker.ts';
import { trackerHands } from '../../actors/tracker.ts';
import type { StateNotice } from '../../actors/vrrpRouter.ts';
import { syncGroupHands, vrrpRouterHands } from '../../actors/vrrpRouter.ts';
import type { ActorSystem, Hands } from '../../actors/system.ts';
import type { TrackerKind } from '../../machines/tracker.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import { masterDownMs, OWNER_PRIORITY } from '../../machines/vrrpRouter.ts';
import type { NotifyConfig, RouterConfig, VirtualAddressConfig } from '../config/routers.ts';
import type { Config } from '../config/schema.ts';
import type { SystemClock } from '../clock.ts';
import { messageOf } from '../errors.ts';
import { Alarm } from '../net/alarm.ts';
import { PacketSocket } from '../net/packetSocket.ts';
import { Poller } from '../net/poller.ts';
import { RouteNetlink } from '../net/rtnetlink.ts';
import { readNumberFile } from '../trackers/file.ts';
import { lookForProcess } from '../trackers/process.ts';
import { observeScript } from '../trackers/script.ts';
import { AcceptRules } from './acceptRules.ts';
import { Addresses } from './addresses.ts';
import type { HeldAddress } from './addresses.ts';
import type { Authentication } from './advertiser.ts';
import { PersistentCounter } from './counter.ts';
import { Guard } from './guard.ts';
import type { Charge } from './guard.ts';
import { Links } from './links.ts';
import { Macvlans, macvlanName } from './macvlans.ts';
import type { NatsPort } from './natsWire.ts';
import { Notifier } from './notify.ts';
import type { NotifyEvent, NotifyScripts } from './notify.ts';
import { openNotifyPipe } from './notifyPipe.ts';
import { reasonText } from './reasons.ts';
import { addressId, isHeldByBinding, routerId, trackersOf } from './wiring.ts';
import { warmUp } from './warmUp.ts';
import { Wire } from './wire.ts';

/** The guard is told of silence no sooner than this: a loop that is late now and then must not lose its addresses. */
const SHORTEST_SILENCE_MS = 100;
/** A look at a process table or a file on a network may hang; it is given up then. */
const LOOK_TIMEOUT_MS = 5_000;
/**
 * Above everything of usual priority, as keepalived's `vrrp_priority` is used: a machine that is busy with traffic must
 * not make a master late. Threads and programs that it starts don't keep it.
 */
const CONTROL_THREAD_NICE = -10;
/** Notify scripts that still run when the node leaves get this long. */
const NOTIFY_END_MS = 2_000;

export type HostOptions = {
  system: () => ActorSystem;
  clock: SystemClock;
  /** Beside it lie the sequence numbers. */
  journalPath: string;
  /** Null where the node runs without NATS. */
  nats(): NatsPort | null;
  note(type: string, payload: Record<string, unknown>): void;
  warn(message: string): void;
  /** Lets the listeners on a loopback address begin to listen; answered when they do. */
  bind(address: string, done: (answer: AddressAnswer) => void): void;
  /** Lets them end to listen; answered when they have. */
  unbind(address: string, done: (answer: AddressAnswer) => void): void;
};

type Parts = {
  poller: Poller;
  links: Links;
  wire: Wire;
  addresses: Addresses;
  macvlans: Macvlans;
  acceptRules: AcceptRules;
  notifier: Notifier;
  packets: PacketSocket | null;
  counter: PersistentCounter;
  alarm: Alarm;
};

type AddressEntry = { router: string; config: VirtualAddressConfig };

export class VrrpHost {
  readonly hands: Record<string, Hands>;
  #options: HostOptions;
  #config: Config | null = null;
  #parts: Parts | null = null;
  #guard: Guard | null = null;
  #held: HeldAddress[] = [];
  #addresses = new Map<string, AddressEntry>();
  #authentications = new Map<string, Authentication>();
  #chargeScheduled = false;
  #ended = false;

  constructor(options: HostOptions) {
    this.#options = options;
    const parts = () => this.#needParts();
    const notify = (notice: StateNotice) => this.#notify(notice);
    const timerLateMs = () => options.system().timerLateUs / 1000;
    this.hands = {
      vrrpRouter: vrrpRouterHands(
        {
          open: (router) => this.#openRouter(router),
          sendAdvert: (router, priority, periodic, copies) =>
            parts().wire.sendAdvert(router, priority, periodic, copies),
          look: (router, answer) => parts().wire.look(router, answer),
          close: (router) => this.#closeRouter(router),
        },
        notify,
        timerLateMs,
      ),
      syncGroup: syncGroupHands(notify),
      virtualAddress: virtualAddressHands({
        add: (address, answer) => parts().addresses.add(address, answer),
        remove: (address, answer) => parts().addresses.remove(address, answer),
        announce: (address, count) => parts().addresses.announce(address, count),
      }),
      tracker: trackerHands((tracker, kind, answer) => this.#observe(tracker, kind, answer)),
    };
  }

  /** Takes a configuration: what is running hears of it, sockets and addresses follow when actors start and stop. */
  configure(config: Config, authentications: Map<string, Authentication>): void {
    this.#config = config;
    this.#authentications = authentications;
    this.#addresses = new Map(
      Object.entries(config.routers).flatMap(([router, { addresses }]) =>
        addresses.map((address): [string, AddressEntry] => [
          addressId(router, address.address),
          { router, config: address },
        ]),
      ),
    );
    if (!this.#parts) return;
    const { wire, acceptRules } = this.#parts;
    for (const [router, setup] of Object.entries(config.routers)) {
      const id = routerId(router);
      // One that is not open yet gets its rules when it opens.
      if (wire.figures(id)) this.#settleAcceptance(acceptRules, id, setup);
      wire.reconfigure(id);
    }
    this.#chargeSoon();
  }

  /** Sent, received, and discarded by kind; null for a router that is not open. */
  figures(router: string) {
    return this.#parts?.wire.figures(routerId(router)) ?? null;
  }

  sourceOf(router: string): string | null {
    return this.#parts?.wire.sourceOf(routerId(router)) ?? null;
  }

  get foreignVrids(): number {
    return this.#parts?.wire.foreignVrids ?? 0;
  }

  /** The routers have left; waits for the scripts that tell of it. */
  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    const parts = this.#parts;
    if (!parts) return;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((done) => (timer = setTimeout(done, NOTIFY_END_MS)));
    await Promise.race([parts.notifier.settled(), late]);
    clearTimeout(timer);
    parts.notifier.stop();
    parts.wire.end();
    parts.addresses.end();
    parts.macvlans.end();
    await parts.acceptRules.end();
    this.#guard?.end();
    this.#options.clock.useAlarm(null);
    parts.alarm.close();
    parts.packets?.close();
    parts.links.netlink.close();
    parts.poller.close();
  }

  /** Nothing of the machine is touched before the first router needs it. */
  #needParts(): Parts {
    if (this.#parts) return this.#parts;
    const { clock, journalPath, warn, note, system, bind, unbind } = this.#options;
    try {
      // On Linux the id of a process is that of its first thread, and means only that one.
      if (getPriority() > CONTROL_THREAD_NICE) setPriority(process.pid, CONTROL_THREAD_NICE);
    } catch (error) {
      // Without CAP_SYS_NICE it goes on as it is.
      note('vrrp.priorityRefused', { message: messageOf(error) });
    }
    const poller = Poller.open();
    const netlink = RouteNetlink.open(poller);
    if ('code' in netlink) throw new Error(`rtnetlink can't be opened: ${netlink.message}`);
    const links = new Links(netlink);
    const alarm = new Alarm(poller);
    clock.useAlarm(alarm);
    const packets = PacketSocket.open();
    const counter = new PersistentCounter(
      join(dirname(journalPath), `${this.#config!.node}.sequence`),
      Math.floor(clock.wallUs() / 1e6),
      (error) => warn(`the sequence numbers of authenticated adverts can't be kept: ${messageOf(error)}`),
    );
    counter.onReserved(() => this.#chargeSoon());
    const macvlans = new Macvlans(links, (message) => warn(message));
    const wire = new Wire({
      node: this.#config!.node,
      poller,
      links,
      clock,
      counter,
      nats: this.#options.nats(),
      report: (router, event) => {
        system().send(router, event);
        if (event.type === 'interface.up') this.#chargeSoon();
      },
      setupOf: (id) => this.#setupOf(id),
      onSendFailure: (router, code) => this.#sendFailed(router, code),
    });
    const addresses = new Addresses({
      links,
      packets: 'code' in packets ? null : packets,
      setupOf: (id) => this.#addressSetupOf(id),
      configured: () => this.#addresses.keys(),
      report: (address, event) => system().send(address, event),
      bind,
      unbind,
      onHeld: (held) => {
        this.#held = held;
        this.#chargeSoon();
      },
      onTrouble: (address, what, code) => warn(`${address} could not be ${what}: ${code}`),
    });
    const pipeConfig = this.#config!.notifyPipe;
    const opened = pipeConfig
      ? openNotifyPipe({ ...pipeConfig, user: null, report: (event) => this.#notified(event) })
      : { pipe: null };
    if ('problem' in opened) warn(opened.problem);
    const notifier = new Notifier({
      scriptsOf: (kind, name) => this.#scriptsOf(kind, name),
      pipe: 'pipe' in opened ? opened.pipe : null,
      report: (event) => this.#notified(event),
    });
    warmUp(netlink, 'code' in packets ? null : packets);
    note('vrrp.opened', { interfaces: links.names() });
    this.#parts = {
      poller,
      links,
      wire,
      addresses,
      macvlans,
      acceptRules: new AcceptRules((message) => warn(message)),
      notifier,
      packets: 'code' in packets ? null : packets,
      counter,
      alarm,
    };
    return this.#parts;
  }

  #routerConfig(id: string): { name: string; config: RouterConfig } | null {
    const name = id.slice('router/'.length);
    const config = this.#config?.routers[name];
    return config ? { name, config } : null;
  }

  #openRouter(id: string): void {
    const router = this.#routerConfig(id);
    if (!router) return;
    const { macvlans, acceptRules, wire } = this.#needParts();
    const { config } = router;
    if (config.virtualMac) macvlans.want(id, config.interface!, config.addresses[0]!.family, config.vrid);
    this.#settleAcceptance(acceptRules, id, config);
    wire.open(id);
    this.#chargeSoon();
  }

  #settleAcceptance(acceptRules: AcceptRules, id: string, { accept, priority, addresses }: RouterConfig): void {
    if (accept || priority === OWNER_PRIORITY) acceptRules.release(id);
    else
      acceptRules.want(
        id,
        addresses.map(({ address }) => address),
      );
  }

  #closeRouter(id: string): void {
    const { wire, macvlans, acceptRules } = this.#needParts();
    wire.close(id);
    macvlans.release(id);
    acceptRules.release(id);
    this.#chargeSoon();
  }

  #setupOf(id: string) {
    const router = this.#routerConfig(id);
    if (!router) return null;
    const { config, name } = router;
    return {
      config,
      authentication: this.#authentications.get(name) ?? { type: 'none' as const },
      // To a peer with the same virtual MAC nothing but multicast gets through from it: unicast goes by the parent.
      sendingInterface:
        config.virtualMac && config.transport === 'multicast'
          ? macvlanName(config.addresses[0]!.family, config.vrid)
          : config.interface,
    };
  }

  #addressSetupOf(id: string) {
    const entry = this.#addresses.get(id);
    const router = entry ? this.#config?.routers[entry.router] : undefined;
    if (!entry || !router) return null;
    const { config } = entry;
    const isMacvlan = router.virtualMac && config.interface === undefined;
    return {
      address: config.address,
      prefixLength: config.prefixLength,
      family: config.family,
      label: config.label,
      interfaceName: isHeldByBinding(config)
        ? null
        : isMacvlan
          ? macvlanName(config.family, router.vrid)
          : (config.interface ?? router.interface ?? null),
      isMacvlan,
      isOwners: router.priority === 255,
    };
  }

  #observe(id: string, kind: TrackerKind, answer: (seen: Observation) => void): () => void {
    const { track } = trackersOf(this.#config!).get(id) ?? {};
    if (!track) return () => {};
    if ('interface' in track) return this.#watchInterface(track.interface, answer);
    if ('script' in track) {
      const { script: command, timeout: timeoutMs, user = null } = track;
      return observeScript({ command, timeoutMs, user }, answer);
    }
    if ('process' in track) {
      const { process: name, min, max = null } = track;
      return lookForProcess({ name, command: false, min, max, timeoutMs: LOOK_TIMEOUT_MS }, answer);
    }
    if ('file' in track) return readNumberFile({ path: track.file, timeoutMs: LOOK_TIMEOUT_MS }, answer);
    throw new Error(`${id}: a tracker of kind ${kind} is not looked at`);
  }

  #watchInterface(name: string, answer: (seen: Observation) => void): () => void {
    const { links } = this.#needParts();
    let told: string | null = null;
    const look = () => {
      const trouble = links.troubleOf(name);
      const message = trouble?.message ?? '';
      if (message === told) return;
      told = message;
      answer({ ok: trouble === null, value: null, code: trouble?.code ?? '', message, durationMs: 0 });
    };
    look();
    return links.onChange((change) => {
      if (change.kind === 'link') look();
    });
  }

  #notify({ kind, subject, state, priority, reason, router }: StateNotice): void {
    const name = subject.slice(subject.indexOf('/') + 1);
    this.#chargeSoon();
    if (this.#ended) return;
    const { code = 'group', ...evidence } = reason ?? {};
    this.#needParts().notifier.tell({
      kind,
      name,
      state,
      priority: priority ?? 0,
      reason: reason ? reasonText(reason) : `its member ${router?.replace('router/', '') ?? ''} went first`,
      evidence: { code, ...evidence },
    });
  }

  #scriptsOf(kind: 'INSTANCE' | 'GROUP', name: string): NotifyScripts | null {
    const notify: NotifyConfig | undefined =
      kind === 'INSTANCE' ? this.#config?.routers[name]?.notify : this.#config?.syncGroups[name]?.notify;
    if (!notify) return null;
    const { command = [], master = [], backup = [], fault = [], stop = [], timeout, user = null } = notify;
    return { command, master, backup, fault, stop, timeoutMs: timeout, user };
  }

  #notified(event: NotifyEvent): void {
    if (event.type === 'notify.done') return;
    const { type, ...payload } = event;
    this.#options.note(type, payload);
    this.#options.warn(`${event.command}: ${event.message}`);
  }

  #lastFailure = new Map<string, string>();

  /** Once for each trouble: at 100 adverts a second a log would be nothing else. */
  #sendFailed(router: string, code: string): void {
    if (this.#lastFailure.get(router) === code) return;
    this.#lastFailure.set(router, code);
    this.#options.warn(`${router} can't send its adverts: ${code}`);
    this.#options.note('advert.sendFailed', { router, code });
  }

  /** Once a turn: a takeover changes addresses and states one after the other. */
  #chargeSoon(): void {
    if (this.#chargeScheduled || this.#ended) return;
    this.#chargeScheduled = true;
    setImmediate(() => {
      this.#chargeScheduled = false;
      if (this.#ended || !this.#parts) return;
      const charge = this.#charge(this.#parts);
      if (this.#guard) this.#guard.charge(charge);
      else this.#guard = new Guard(charge, { onTrouble: (message) => this.#options.warn(message) });
    });
  }

  #charge({ wire, links, macvlans, acceptRules, counter }: Parts): Charge {
    const charge: Charge = {
      held: this.#held,
      farewells: [],
      macvlans: macvlans.names(),
      tables: acceptRules.tables(),
      silenceMs: Infinity,
      counter: String(counter.reserved),
    };
    for (const [name, config] of Object.entries(this.#config?.routers ?? {})) {
      const id = routerId(name);
      const actor = this.#options.system().get(id);
      const router = wire.routerOf(id);
      if (actor?.state !== 'master' || !router) continue;
      const { settings } = actor.context as RouterContext;
      charge.silenceMs = Math.min(charge.silenceMs, masterDownMs(settings, 255, settings.advertMs));
      // Whoever outlives the node has no connection to NATS.
      if (config.transport === 'nats') continue;
      const sending = this.#setupOf(id)?.sendingInterface;
      const link = sending === undefined ? null : links.find(sending);
      charge.farewells.push({
        router,
        interfaceName: link?.name ?? null,
        interfaceIndex: link?.index ?? 0,
        peers: config.peers,
      });
    }
    charge.silenceMs = Math.max(SHORTEST_SILENCE_MS, Number.isFinite(charge.silenceMs) ? charge.silenceMs : 0);
    return charge;
  }
}

const textOf = (secret: string | { file: string }): string =>
  typeof secret === 'string' ? secret : readFileSync(secret.file, 'utf8').trim();

/** By router, with the secrets of files. @throws what reading a file throws */
export const readAuthentications = ({ routers }: Config): Map<string, Authentication> =>
  new Map(Object.entries(routers).map(([name, router]) => [name, authenticationOf(router)]));

const authenticationOf = ({ authentication }: RouterConfig): Authentication => {
  if (!authentication) return { type: 'none' };
  if (authentication.type !== 'hmac') return { type: authentication.type, secret: textOf(authentication.secret) };
  return { type: 'hmac', keys: authentication.keys.map(({ id, secret }) => ({ id, secret: textOf(secret) })) };
};
