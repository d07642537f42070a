/** Three load balancers with a nats-server each, three web servers and a client, to break and watch. */
import { ClusterLab, VIP } from './cluster.ts';
import type { Lab } from './lab.ts';
import { onHost, understudyHere } from './standing.ts';

/** @returns what to try */
export const standCluster = async (lab: Lab): Promise<string> => {
  const cluster = await ClusterLab.create({ lab });
  const [lb1, lb2, lb3] = cluster.hosts.map(onHost);
  const client = onHost(cluster.client);
  const command = understudyHere();
  const pid = (name: string) => cluster.node(name).running.pid;
  const natsPid = (name: string) => cluster.natsOf(name).running.pid;
  const cable = `ip -n ${lab.switchNamespace} link set ${cluster.hosts[0]!.port('eth0')}`;
  const urls = cluster.urls.join(',');
  const config = cluster.node('lb1').config;
  return `
The cluster stands: lb1, lb2 and lb3 with a nats-server each, web1, web2 and web3, and a client, on one wire.
Files: ${lab.folder}

Ask through the virtual address, as a client:
  while sleep 0.1; do ${client} curl -s -m 1 http://${VIP}/ || echo NOTHING; done

The whole cluster from any node, and a command to all of them:
  ${lb2} ${command} status
  ${lb2} ${command} status --node lb3
  ${lb2} ${command} server drain web/web1
  ${lb2} ${command} server ready web/web1

Kill the node that holds the address; read why lb2 has it, in what lb1 has left in the cluster log, too; start it again:
  kill -KILL ${pid('lb1')}
  ${lb2} ${command} explain router/gateway
  ${lb2} ${command} log --cluster ${urls} --actor router/gateway
  ${lb2} ${command} verify --cluster ${urls}
  ${lb1} ${command} run ${config}

Take NATS away (two of three are no majority left), and give it back: traffic goes on, and the log is made up for.
  kill -STOP ${natsPid('lb2')} ${natsPid('lb3')}
  ${lb1} ${command} status
  kill -CONT ${natsPid('lb2')} ${natsPid('lb3')}

Cut lb1 off:
  ${cable} down; sleep 5; ${cable} up

${lb3} ${command} log --follow   shows what another node makes of it. Ctrl-C ends everything.`;
};
