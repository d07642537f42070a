/** The names that a cluster has on NATS. Dots separate the tokens of a subject, and stream names have none. */

/** `~` is in no name of ours, so that two names never become one token. */
export const tokenOf = (name: string): string => name.replaceAll('.', '~');
export const nameOfToken = (token: string): string => token.replaceAll('~', '.');
/** A bucket's name has letters, digits, `-` and `_` alone. */
const bucketTokenOf = (name: string): string => name.replaceAll('_', '_-').replaceAll('.', '__');

export const LOG_STREAM_PATTERN = /^understudy-(.+)-log$/;

export type Subjects = ReturnType<typeof subjectsOf>;

export const subjectsOf = (cluster: string) => {
  const root = `understudy.${tokenOf(cluster)}`;
  const stream = `understudy-${tokenOf(cluster)}`;
  return {
    /** JetStream: the journal of a node, shipped by its courier. */
    log: (node: string) => `${root}.log.${tokenOf(node)}`,
    logs: `${root}.log.*`,
    /** JetStream: operators' commands for all nodes. */
    command: `${root}.command`,
    /** Core: what each node says to one command. */
    answer: (command: string) => `${root}.answer.${command}`,
    /** Core: adverts of routers whose transport is `nats`. */
    vrrp: (router: string) => `${root}.vrrp.${tokenOf(router)}`,
    /** Core: what a node's checks say of a server, when it changes. */
    probe: (pool: string, server: string) => `${root}.probe.${tokenOf(pool)}.${tokenOf(server)}`,
    probes: `${root}.probe.*.*`,
    /** Core: a heartbeat a second. */
    alive: (node: string) => `${root}.alive.${tokenOf(node)}`,
    alives: `${root}.alive.*`,
    /** Request and reply: questions to one node. */
    ask: (node: string) => `${root}.ask.${tokenOf(node)}`,
    logStream: `${stream}-log`,
    commandStream: `${stream}-command`,
    configBucket: `understudy-${bucketTokenOf(cluster)}-config`,
  };
};

/** The node of `understudy.shop.alive.lb1`. */
export const lastName = (subject: string): string => nameOfToken(subject.slice(subject.lastIndexOf('.') + 1));
