/**
 * Two nodes at 100 ms adverts while traffic through the virtual address keeps every core of the machine busy: nobody may
 * take over. `node test/lab/busy.ts [SECONDS]` (`npm run soak:busy`: ten minutes), a short form is among the tests.
 */
import { Lab } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { LabNode, untilOneMaster } from '../../deploy/lab/node.ts';

const ADDRESS = '10.9.0.100';

export type BusyResult = {
  seconds: number;
  /** As the load generator has it. */
  requestsPerSecond: number;
  failedRequests: number;
  /** Changes of state of the two routers while the load was on. */
  transitions: string[];
  latenessMs: Record<string, { p50: number; p99: number; max: number }>;
  verified: boolean;
};

const configOf = (priority: number) => ({
  // As many as a machine of two cores has by default.
  workers: 2,
  frontends: { shop: { mode: 'http', bind: [`${ADDRESS}:80`], use: 'web' } },
  backends: {
    web: {
      check: { type: 'http', interval: '1s', timeout: '2s', fall: 10 },
      servers: [{ name: 'web1', address: '10.9.0.21:80' }],
    },
  },
  routers: {
    gateway: { vrid: 51, interface: 'eth0', priority, advertise: '100ms', addresses: [`${ADDRESS}/24`] },
  },
});

export const runBusy = async (lab: Lab, seconds: number): Promise<BusyResult> => {
  const lan = async (name: string, address: string) => lab.host(name, { addresses: { eth0: [address] } });
  const [lb1, lb2, web1, client] = [
    await lan('lb1', '10.9.0.11/24'),
    await lan('lb2', '10.9.0.12/24'),
    await lan('web1', '10.9.0.21/24'),
    await lan('client', '10.9.0.31/24'),
  ];
  await startNginx(web1, 'web1');
  const nodes = [await LabNode.start(lb1, configOf(200)), await LabNode.start(lb2, configOf(150))];
  await untilOneMaster(nodes, ADDRESS);
  const from = nodes.map(({ running }) => running.lines.length);
  const load = ['-t2', '-c64', `-d${seconds}s`, '--timeout', '10s', `http://${ADDRESS}/`];
  const wrk = await client.spawn('wrk', load);
  await wrk.exited;
  const report = wrk.lines.map(({ text }) => text).join('\n');
  const transitions = nodes.flatMap(({ name, running }, index) =>
    running.lines
      .slice(from[index])
      .filter(({ text }) => text.includes('"actor":"router/'))
      .map(({ text }) => `${name} ${(JSON.parse(text) as { msg: string }).msg}`),
  );
  const latenessMs: BusyResult['latenessMs'] = {};
  for (const node of nodes) latenessMs[node.name] = (await node.state()).node.latenessMs;
  for (const node of nodes) await node.end();
  const verified = nodes.every((node) => node.verify().divergence === null);
  const errors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(report);
  const others = /Non-2xx or 3xx responses: (\d+)/.exec(report);
  return {
    seconds,
    requestsPerSecond: Number(/Requests\/sec:\s+([\d.]+)/.exec(report)?.[1] ?? 0),
    failedRequests: (errors?.slice(1).reduce((sum, count) => sum + Number(count), 0) ?? 0) + Number(others?.[1] ?? 0),
    transitions,
    latenessMs,
    verified,
  };
};

if (import.meta.main) {
  const lab = await Lab.create();
  try {
    const result = await runBusy(lab, Number(process.argv[2] ?? 600));
    console.log(JSON.stringify(result, null, 2));
    if (result.transitions.length > 0 || !result.verified) process.exitCode = 1;
  } finally {
    await lab.destroy();
  }
}
