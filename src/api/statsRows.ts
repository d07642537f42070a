/** One row of HAProxy's statistics for a frontend, a server or a backend: values by the names of their columns. */
import type { BackendServerContext } from '../../machines/backendServer.ts';
import type { Member, PoolContext } from '../../machines/pool.ts';
import type { BackendConfig, Config, FrontendConfig, ServerConfig } from '../config/schema.ts';
import { formatEndpoint } from '../config/units.ts';
import type { UnderstudyNode } from '../node.ts';
import type { Figures, Rates } from '../proxy/counters.ts';
import { LATENCY } from '../proxy/histograms.ts';
import { checkerId, frontendSlotName, listenerId, poolId, serverId } from '../wiring.ts';
import { checkOf, statusText } from './statsStatus.ts';
import { downtimeSeconds } from './statsTallies.ts';
import type { StatsTallies } from './statsTallies.ts';

export type Row = Record<string, string | number | undefined>;
type World = { node: UnderstudyNode; tallies: StatsTallies };
type Mode = 'tcp' | 'http';

/** HAProxy's numbers for the kinds of rows. */
const TYPE = { frontend: 0, backend: 1, server: 2 };
/** HAProxy numbers its processes; there has been one for long. */
const PID = 1;

const ALGORITHMS: Record<string, string> = {
  roundRobin: 'roundrobin',
  leastConnections: 'leastconn',
  source: 'source',
  uri: 'uri',
  header: 'hdr',
  random: 'random',
  first: 'first',
};

/** What a pool doesn't count itself is its servers' sum; what it does count is never less than that. */
export class PoolSums {
  #figures: Figures | null = null;

  add(figures: Figures): void {
    if (this.#figures === null) this.#figures = { ...figures };
    else {
      for (const name of Object.keys(figures) as (keyof Figures)[])
        this.#figures[name] = name.startsWith('max')
          ? Math.max(this.#figures[name], figures[name])
          : this.#figures[name] + figures[name];
    }
  }

  with(own: Figures | null): Figures | null {
    if (own === null || this.#figures === null) return own ?? this.#figures;
    const figures = { ...own };
    for (const name of Object.keys(own) as (keyof Figures)[]) figures[name] = Math.max(own[name], this.#figures[name]);
    return figures;
  }
}

/** A backend's mode is its own word, or that of a frontend which uses it. */
export const modeOf = ({ frontends, backends }: Config, name: string): Mode =>
  backends[name]?.mode ?? Object.values(frontends).find(({ use }) => use === name)?.mode ?? 'http';

export const frontendRow = ({ node }: World, name: string, frontend: FrontendConfig): Row => {
  const { mode, maxConnections, bind } = frontend;
  const slot = frontendSlotName(name);
  const figures = node.dataPlane.figures(slot);
  const rates = node.dataPlane.rates(slot);
  const isOpen = bind.some(({ address }) => node.system.get(listenerId(name, address))?.state === 'open');
  const isFull = figures !== null && figures.active >= maxConnections;
  return {
    pxname: name,
    svname: 'FRONTEND',
    type: TYPE.frontend,
    pid: PID,
    mode,
    status: isOpen ? (isFull ? 'FULL' : 'OPEN') : 'STOP',
    slim: maxConnections,
    rate_lim: 0,
    ...(figures && {
      ...trafficOf(figures),
      dreq: figures.deniedRequests,
      ereq: figures.requestErrors,
      conn_tot: figures.connections,
      dcon: figures.deniedConnections,
      dses: 0,
      ssl_sess: figures.tlsHandshakes,
      ssl_reused_sess: figures.tlsResumptions,
      ssl_failed_handshake: figures.tlsFailures,
    }),
    ...(figures && mode === 'http' && { ...httpOf(figures), intercepted: figures.intercepted }),
    ...(rates && {
      rate: rates.sessions.now,
      rate_max: rates.sessions.max,
      conn_rate: rates.connections.now,
      conn_rate_max: rates.connections.max,
    }),
    ...(rates && mode === 'http' && { req_rate: rates.requests.now, req_rate_max: rates.requests.max }),
  };
};

/** Null for one that is just being removed. Its figures go into the pool's. */
export const serverRow = (world: World, pool: string, server: ServerConfig, mode: Mode, sums: PoolSums): Row | null => {
  const { node, tallies } = world;
  const id = serverId(pool, server.name);
  const actor = node.system.get(id);
  if (!actor) return null;
  const context = actor.context as BackendServerContext;
  const { settings, weight, share } = context;
  const [health = '', admin = '', warmth = ''] = actor.state.split(',');
  const figures = node.dataPlane.figures(id);
  if (figures) sums.add(figures);
  const tally = tallies.of(id);
  const nowUs = node.clock.wallUs();
  // Failures since the first of this doubt have changed no state yet.
  const doubts = health === 'goingDown' ? Math.max(0, context.count - 1) : 0;
  return {
    pxname: pool,
    svname: server.name,
    type: TYPE.server,
    pid: PID,
    status: statusText(context, health, admin, membersOf(node, pool)[server.name]?.ejected === true),
    weight: (weight * share) / 100,
    uweight: weight,
    act: settings.backup ? 0 : 1,
    bck: settings.backup ? 1 : 0,
    addr: formatEndpoint(server.address),
    slim: server.maxConnections || undefined,
    qlimit: server.maxQueue || undefined,
    throttle: warmth === 'warming' ? share : undefined,
    lastchg: tally && Math.floor((nowUs - tally.sinceUs) / 1e6),
    ...(figures && {
      ...trafficOf(figures),
      ...queueOf(figures),
      ...failuresOf(figures),
      used_conn_cur: figures.active,
      idle_conn_cur: figures.idle,
      srv_icur: figures.idle,
    }),
    ...(figures && mode === 'http' && responsesOf(figures)),
    ...(settings.checked &&
      tally && {
        chkfail: tally.checkFailures + doubts,
        chkdown: tally.downs,
        downtime: downtimeSeconds(tally, nowUs),
        hanafail: figures?.observedFailures ?? 0,
      }),
    ...(settings.checked &&
      admin !== 'maintenance' &&
      checkOf(context, health, node.lastProbes.get(checkerId(pool, server.name)))),
    ...ratesOf(node, id),
    ...timesOf(node, id),
  };
};

export const backendRow = (world: World, name: string, backend: BackendConfig, mode: Mode, sums: PoolSums): Row => {
  const { node, tallies } = world;
  const id = poolId(name);
  const state = node.system.get(id)?.state ?? 'exhausted';
  const usable = Object.values(membersOf(node, name)).filter(
    ({ admin, health, weight, ejected }) => admin === 'ready' && health !== 'down' && weight > 0 && !ejected,
  );
  const primaries = usable.filter(({ backup }) => !backup);
  const working = primaries.length > 0 ? primaries : usable;
  const figures = sums.with(node.dataPlane.figures(id));
  const tally = tallies.of(id);
  const nowUs = node.clock.wallUs();
  return {
    pxname: name,
    svname: 'BACKEND',
    type: TYPE.backend,
    pid: PID,
    status: state === 'exhausted' ? 'DOWN' : 'UP',
    act: primaries.length,
    bck: usable.length - primaries.length,
    weight: working.reduce((sum, { weight, share }) => sum + (weight * share) / 100, 0),
    uweight: working.reduce((sum, { weight }) => sum + weight, 0),
    algo: algorithmOf(backend),
    ...(figures && {
      ...trafficOf(figures),
      ...queueOf(figures),
      ...failuresOf(figures),
      dreq: figures.deniedRequests,
    }),
    ...(figures && mode === 'http' && httpOf(figures)),
    ...(tally && {
      lastchg: Math.floor((nowUs - tally.sinceUs) / 1e6),
      chkdown: tally.downs,
      downtime: downtimeSeconds(tally, nowUs),
    }),
    ...ratesOf(node, id),
    ...timesOf(node, id),
  };
};

const membersOf = (node: UnderstudyNode, pool: string): Readonly<Record<string, Member>> =>
  (node.system.get(poolId(pool))?.context as PoolContext | undefined)?.members ?? {};

const algorithmOf = ({ balance }: BackendConfig): string => {
  const name = typeof balance === 'string' ? balance : ((balance as { type?: string }).type ?? '');
  return ALGORITHMS[name] ?? name;
};

const trafficOf = (figures: Figures): Row => ({
  scur: figures.active,
  smax: figures.maxActive,
  stot: figures.sessions,
  bin: figures.bytesIn,
  bout: figures.bytesOut,
  // No rule denies an answer.
  dresp: 0,
  eint: figures.internalErrors,
});

const queueOf = (figures: Figures): Row => ({
  qcur: figures.queued,
  qmax: figures.maxQueued,
  lbtot: figures.sessions,
});

const failuresOf = (figures: Figures): Row => ({
  econ: figures.connectFailures,
  eresp: figures.responseFailures,
  wretr: figures.retries,
  wredis: figures.redispatches,
  cli_abrt: figures.clientAborts,
  srv_abrt: figures.serverAborts,
  connect: figures.connects,
  reuse: figures.reuses,
});

const responsesOf = (figures: Figures): Row => ({
  hrsp_1xx: figures.status1xx,
  hrsp_2xx: figures.status2xx,
  hrsp_3xx: figures.status3xx,
  hrsp_4xx: figures.status4xx,
  hrsp_5xx: figures.status5xx,
  hrsp_other: figures.statusOther,
  req_tot: figures.requests,
});

const httpOf = (figures: Figures): Row => ({
  ...responsesOf(figures),
  comp_in: figures.compressionIn,
  comp_out: figures.compressionOut,
  comp_byp: figures.compressionBypassed,
  comp_rsp: figures.compressedResponses,
});

const ratesOf = (node: UnderstudyNode, id: string): Row => {
  const rates: Rates | null = node.dataPlane.rates(id);
  if (!rates) return {};
  const { lastSessionMs, sessions } = rates;
  const sinceMs = node.clock.monoUs() / 1000 - lastSessionMs;
  return {
    rate: sessions.now,
    rate_max: sessions.max,
    lastsess: lastSessionMs === 0 ? -1 : Math.floor(sinceMs / 1000),
  };
};

/** In ms: the average of the latest, and the longest ever. */
const timesOf = (node: UnderstudyNode, id: string): Row => {
  const row: Row = {};
  for (const [column, kind] of TIMES) {
    const latency = node.dataPlane.latency(id, kind);
    row[column] = (latency?.recentUs ?? 0) / 1000;
    row[`${column}_max`] = (latency?.maxUs ?? 0) / 1000;
  }
  return row;
};

const TIMES = [
  ['qtime', LATENCY.queue],
  ['ctime', LATENCY.connect],
  ['rtime', LATENCY.response],
  ['ttime', LATENCY.total],
] as const;
