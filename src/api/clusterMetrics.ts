/** Metrics of the bus and of the other nodes. */
import type { UnderstudyNode } from '../node.ts';
import { labelText, withLabel } from './exposition.ts';
import type { MakeFamily } from './exposition.ts';

const MEMBER_STATES = ['alive', 'suspect', 'gone'];

export const clusterMetrics = ({ cluster, clock }: UnderstudyNode, family: MakeFamily): void => {
  if (!cluster) return;
  const { bus, members } = cluster;
  const connected = family('bus_connected', 'gauge', '1 while the node is joined to NATS.');
  connected.add('', bus.status.connected ? 1 : 0);
  family('bus_since_seconds', 'gauge', 'When the connection to NATS was made or lost.').add(
    '',
    bus.status.sinceMs / 1000,
  );
  family('bus_too_large_total', 'counter', 'Messages that were larger than NATS takes.').add('', bus.tooLarge);
  family('member_malformed_total', 'counter', 'Heartbeats that could not be read.').add('', members.malformed);
  family('member_refused_total', 'counter', 'Heartbeats of nodes that there was no room for.').add('', members.refused);
  const doubled = family('member_doubled', 'gauge', '1 while two nodes use the same name.');
  const state = family('member_state', 'gauge', '1 for the state that another node is in.');
  const age = family('member_heartbeat_age_seconds', 'gauge', 'Since the last heartbeat of another node.');
  const behind = family(
    'member_clock_behind_seconds',
    'gauge',
    'How far the clock of another node is behind at most; below 0, how far ahead at least.',
  );
  const ownName = members.impostor();
  if (ownName) doubled.add(labelText({ node: ownName.node }), 1);
  for (const member of members.all()) {
    const labels = labelText({ node: member.node });
    for (const one of MEMBER_STATES) state.add(withLabel(labels, 'state', one), one === member.state ? 1 : 0);
    age.add(labels, (clock.wallUs() - member.heardUs) / 1e6);
    behind.add(labels, member.clockBehindUs / 1e6);
    doubled.add(labels, member.rival ? 1 : 0);
  }
};
