/** Metrics of routers, their addresses, trackers and sync groups. */
import type { TrackerContext } from '../../machines/tracker.ts';
import { effectivePriority } from '../../machines/vrrpRouter.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import type { UnderstudyNode } from '../node.ts';
import { phaseOf } from '../vrrp/reasons.ts';
import { labelText, withLabel } from './exposition.ts';
import type { Family } from './exposition.ts';

const ROUTER_STATES = ['initialize', 'backup', 'master', 'fault'];
const ADDRESS_STATES = ['absent', 'adding', 'announcing', 'held', 'handingOver', 'removing', 'failed'];
const TRACKER_STATES = ['up', 'goingDown', 'down', 'goingUp'];
const GROUP_STATES = ['initialize', 'backup', 'master', 'fault'];

type MakeFamily = (name: string, type: 'gauge' | 'counter', help: string) => Family;

/** Routers are few: all of them in one turn of the loop. */
export const routerMetrics = (node: UnderstudyNode, family: MakeFamily): void => {
  const make = {
    state: family('router_state', 'gauge', '1 for the state that the router is in.'),
    since: family('router_state_since_seconds', 'gauge', 'When the router entered its state.'),
    reason: family('router_reason', 'gauge', 'Why the router is in its state, as a label.'),
    priority: family('router_priority', 'gauge', 'Priority with what trackers and operators make of it.'),
    masters: family('router_master_transitions_total', 'counter', 'How often the router became master.'),
    sent: family('router_adverts_sent_total', 'counter', 'Adverts sent.'),
    zero: family('router_priority_zero_sent_total', 'counter', 'Adverts sent that say that the router leaves.'),
    failures: family('router_advert_send_failures_total', 'counter', 'Adverts that could not be sent.'),
    received: family('router_adverts_received_total', 'counter', 'Adverts accepted.'),
    discarded: family('router_adverts_discarded_total', 'counter', 'Packets discarded, by what was wrong with them.'),
    conflicts: family('router_conflicts', 'gauge', 'Live peers whose adverts are discarded: two masters.'),
    address: family('address_state', 'gauge', '1 for the state that the virtual address is in.'),
    tracker: family('tracker_state', 'gauge', '1 for the state that the tracker is in.'),
    value: family('tracker_value', 'gauge', 'Number in the tracked file.'),
    group: family('sync_group_state', 'gauge', '1 for the state that the sync group is in.'),
  };
  const oneOf = (into: Family, labels: string, states: string[], state: string): void => {
    for (const one of states) into.add(withLabel(labels, 'state', one), one === state ? 1 : 0);
  };
  family('foreign_vrids_total', 'counter', 'Adverts of virtual routers that this node has no part in.').add(
    '',
    node.vrrp.foreignVrids,
  );
  for (const { id, machine, state, context } of node.system.all()) {
    if (machine === 'vrrpRouter') {
      const router = context as RouterContext;
      const labels = labelText({ router: router.name });
      oneOf(make.state, labels, ROUTER_STATES, phaseOf(state));
      make.since.add(labels, node.tallies.sinceUs(id) / 1e6);
      make.reason.add(withLabel(labels, 'code', router.reason.code), 1);
      make.priority.add(labels, effectivePriority(router));
      make.masters.add(labels, node.tallies.timesMaster(id));
      make.conflicts.add(labels, Object.keys(router.conflicts).length);
      const figures = node.vrrp.figures(router.name);
      if (!figures) continue;
      make.sent.add(labels, figures.sent);
      make.zero.add(labels, figures.sentPriorityZero);
      make.failures.add(labels, figures.sendFailures);
      make.received.add(labels, figures.received);
      for (const [kind, count] of Object.entries(figures.discarded))
        make.discarded.add(withLabel(labels, 'kind', kind), count);
    } else if (machine === 'virtualAddress') {
      const [, router = '', ...address] = id.split('/');
      oneOf(make.address, labelText({ router, address: address.join('/') }), ADDRESS_STATES, state);
    } else if (machine === 'tracker') {
      const labels = labelText({ tracker: id.slice('tracker/'.length) });
      oneOf(make.tracker, labels, TRACKER_STATES, state);
      const { value } = context as TrackerContext;
      if (value !== null) make.value.add(labels, value);
    } else if (machine === 'syncGroup')
      oneOf(make.group, labelText({ group: id.slice('group/'.length) }), GROUP_STATES, state);
  }
};
