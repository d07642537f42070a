/** The pairs of nodes that the fail-over benchmark compares: same hosts, priorities and timers, same faults. */
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Lab } from '../../deploy/lab/lab.ts';
import type { Host } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { startKeepalived } from '../lab/keepalived.ts';
import type { Keepalived } from '../lab/keepalived.ts';

export const VIP = '10.9.0.100';
const PRIORITIES = { lb1: 200, lb2: 150 };
const VRID = 51;

export const faults = ['node lost', 'program killed', 'link cut', 'SIGTERM'] as const;
/**
 * `node lost`: everything on the host dies at once, as when its power goes. `program killed`: SIGKILL to the program
 * that speaks VRRP. With keepalived the address and the web server live on without it; an Understudy node is balancer
 * and VRRP in one, and its guard says goodbye. `link cut`: silently. `SIGTERM`: to the program that speaks VRRP.
 */
export type Fault = (typeof faults)[number];

export type Stage = { lab: Lab; lb1: Host; lb2: Host; web: Host; client: Host };

export type Pair = {
  stage: Stage;
  /**
   * To the master, `lb1`.
   * @returns when it was, in milliseconds since 1970
   */
  fault(kind: Fault): Promise<number>;
  /** Everything runs again, and `lb1` is the master. */
  recover(kind: Fault): Promise<void>;
  /** Until `lb1` is the master and the client knows it. */
  settle(): Promise<void>;
  stop(): Promise<void>;
};

/** A pair that runs and whose master answers. */
export type StartPair = (advertMs: number) => Promise<Pair>;

const makeStage = async (): Promise<Stage> => {
  const lab = await Lab.create();
  const host = (name: string, address: string) => lab.host(name, { addresses: { eth0: [`${address}/24`] } });
  const [lb1, lb2, web, client] = await Promise.all([
    host('lb1', '10.9.0.11'),
    host('lb2', '10.9.0.12'),
    host('web', '10.9.0.21'),
    host('client', '10.9.0.31'),
  ]);
  return { lab, lb1, lb2, web, client };
};

/** Until `lb1` alone has the address, and the client gets its answers from there. */
const settle = async ({ lb1, lb2, client }: Stage): Promise<void> => {
  await lb1.untilHolds(VIP);
  await lb2.untilHolds(VIP, false);
  // After two masters the client may still know the wrong one; that isn't what is measured next.
  await client.run('ip', ['neighbour', 'flush', 'all']);
  await until('an answer', async () => {
    const asked = await client.spawn('curl', ['-s', '-f', '-m', '1', '-o', '/dev/null', `http://${VIP}/`]);
    return (await asked.exited).code === 0;
  });
};

const cutLink = async (host: Host): Promise<number> => {
  await host.cut();
  return nowMs();
};

/** What is left on a host whose programs were killed, a restart of the machine would have taken away. */
const forgetAddress = async (host: Host): Promise<void> => {
  if (await host.holds(VIP)) await host.run('ip', ['address', 'del', `${VIP}/24`, 'dev', 'eth0']);
};

export const startKeepalivedPair: StartPair = async (advertMs) => {
  const stage = await makeStage();
  const startDaemon = (name: 'lb1' | 'lb2'): Promise<Keepalived> =>
    startKeepalived(stage[name], {
      instances: [
        { name: 'gateway', vrid: VRID, priority: PRIORITIES[name], advertMs, version: 3, addresses: [`${VIP}/24`] },
      ],
    });
  let nginx = await startNginx(stage.lb1, 'lb1');
  await startNginx(stage.lb2, 'lb2');
  let daemon = await startDaemon('lb1');
  await startDaemon('lb2');
  await settle(stage);
  return {
    stage,
    async fault(kind) {
      if (kind === 'node lost') return stage.lb1.crash();
      if (kind === 'link cut') return cutLink(stage.lb1);
      const atMs = nowMs();
      if (kind === 'SIGTERM') daemon.process.signal('SIGTERM');
      else daemon.process.signalGroup('SIGKILL');
      return atMs;
    },
    async recover(kind) {
      if (kind === 'link cut') await stage.lb1.heal();
      else {
        await daemon.process.exited;
        await forgetAddress(stage.lb1);
        if (kind === 'node lost') {
          await nginx.exited;
          nginx = await startNginx(stage.lb1, 'lb1');
        }
        daemon = await startDaemon('lb1');
      }
      await settle(stage);
    },
    settle: () => settle(stage),
    stop: () => stage.lab.destroy(),
  };
};

const understudyConfiguration = (name: 'lb1' | 'lb2', advertMs: number): string => `
node: ${name}
journal: { path: ./${name}.db }
workers: 1
frontends:
  shop:
    mode: http
    bind: ["${VIP}:80"]
    use: web
backends:
  web:
    check: { type: http, path: /, interval: 1s }
    servers:
      - { name: web1, address: "10.9.0.21:80" }
routers:
  gateway:
    vrid: ${VRID}
    interface: eth0
    version: 3
    priority: ${PRIORITIES[name]}
    advertise: ${advertMs}ms
    preempt: true
    addresses: [${VIP}/24]
    transport: multicast
`;

export const startUnderstudyPair: StartPair = async (advertMs) => {
  const stage = await makeStage();
  const program = resolve(import.meta.dirname, '../../bin/understudy');
  await startNginx(stage.web, 'web');
  const startNode = async (name: 'lb1' | 'lb2'): Promise<LabProcess> => {
    const file = join(stage.lab.folder, `${name}.yaml`);
    writeFileSync(file, understudyConfiguration(name, advertMs));
    const node = await stage[name].spawn(program, ['run', file]);
    await node.waitFor(/is running/);
    return node;
  };
  let node = await startNode('lb1');
  await startNode('lb2');
  await settle(stage);
  return {
    stage,
    async fault(kind) {
      if (kind === 'node lost') return stage.lb1.crash();
      if (kind === 'link cut') return cutLink(stage.lb1);
      const atMs = nowMs();
      node.signal(kind === 'SIGTERM' ? 'SIGTERM' : 'SIGKILL');
      return atMs;
    },
    async recover(kind) {
      if (kind === 'link cut') await stage.lb1.heal();
      else {
        await node.exited;
        await forgetAddress(stage.lb1);
        node = await startNode('lb1');
      }
      await settle(stage);
    },
    settle: () => settle(stage),
    stop: () => stage.lab.destroy(),
  };
};
