/** Two load balancers of an example, three web servers and a client, to break and watch. */
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Host, Lab } from './lab.ts';
import { startNginx } from './nginx.ts';
import type { LabProcess } from './process.ts';
import { examples, onHost, understudy, understudyHere } from './standing.ts';

const BALANCERS = { lb1: '10.9.0.11', lb2: '10.9.0.12' };
const SERVERS = { web1: '10.9.0.21', web2: '10.9.0.22', web3: '10.9.0.23' };
const CLIENT = '10.9.0.31';
const VIP = '10.9.0.100';

/** A node that doesn't start is told, and leaves the rest standing, so that it can be started by hand. */
const startNode = async (host: Host, example: string): Promise<LabProcess> => {
  const file = join(host.folder, `${host.name}.yaml`);
  copyFileSync(join(examples, example, `${host.name}.yaml`), file);
  // In the lab's folder, so that the journal goes with it.
  const node = await host.spawn(understudy, ['run', file], { cwd: host.folder });
  try {
    await node.waitFor(/is running/);
  } catch (error) {
    console.error(`${String(error)}\n${node.lines.map(({ text }) => text).join('\n')}`);
    console.error(`Start ${host.name} with: ip netns exec ${host.namespace} ${understudy} run ${file}`);
  }
  return node;
};

/** @returns what to try */
export const standPair = async (lab: Lab, example: string): Promise<string> => {
  const hostAt = ([name, address]: [string, string]) => lab.host(name, { addresses: { eth0: [`${address}/24`] } });
  const balancers = await Promise.all(Object.entries(BALANCERS).map(hostAt));
  const servers = await Promise.all(Object.entries(SERVERS).map(hostAt));
  const client = await hostAt(['client', CLIENT]);
  await Promise.all(servers.map((server) => startNginx(server, `Hello from ${server.name}.`)));
  const [lb1, lb2] = balancers as [Host, Host];
  const [node1, node2] = await Promise.all([startNode(lb1, example), startNode(lb2, example)]);
  const cable = `ip -n ${lab.switchNamespace} link set ${lb1.port('eth0')}`;
  const command = understudyHere();
  return `
The lab stands: lb1 and lb2 (${example}), web1, web2 and web3, and a client, on one wire. Files: ${lab.folder}

Ask through the virtual address, as a client:
  ${onHost(client)} curl -s http://${VIP}/
  while sleep 0.1; do ${onHost(client)} curl -s -m 1 http://${VIP}/ || echo NOTHING; done

Who holds it, and why:
  ${onHost(lb1)} ${command} status
  ${onHost(lb2)} ${command} status
  ${onHost(lb2)} ${command} log --follow

Break something (PIDs: lb1 ${node1.pid}, lb2 ${node2.pid}):
  kill -STOP ${node1.pid}; sleep 2; kill -CONT ${node1.pid}
  ${cable} down; sleep 2; ${cable} up
  kill -TERM ${node1.pid}

Watch the adverts:
  ${onHost(client)} tcpdump -n -i eth0 ip proto 112

Ctrl-C ends everything.`;
};
