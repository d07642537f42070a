/** Metrics of the way from the journal to the cluster log. */
import { DELAY_BUCKETS_MS } from '../bus/logFigures.ts';
import type { UnderstudyNode } from '../node.ts';
import { labelText } from './exposition.ts';
import type { MakeFamily } from './exposition.ts';

const STATES = ['offline', 'connecting', 'catchingUp', 'inStep', 'refused', 'fenced'];

export const courierMetrics = ({ cluster }: UnderstudyNode, family: MakeFamily): void => {
  if (!cluster) return;
  const { courier } = cluster;
  const { shippedSeq, behind, records, messages, bytes } = courier.figures();
  const state = family('courier_state', 'gauge', '1 for the state that the courier is in.');
  for (const one of STATES) state.add(labelText({ state: one }), one === courier.state ? 1 : 0);
  const values: [string, 'gauge' | 'counter', string, number][] = [
    ['courier_behind_records', 'gauge', 'Records of the journal that the cluster log lacks.', behind],
    ['courier_shipped_records_total', 'counter', 'Records shipped to the cluster log.', records],
    ['courier_shipped_messages_total', 'counter', 'Messages in which they were shipped.', messages],
    ['courier_shipped_bytes_total', 'counter', 'Bytes of these messages.', bytes],
  ];
  if (shippedSeq !== null)
    values.push(['courier_shipped_seq', 'gauge', 'Sequence number of the last record in the cluster log.', shippedSeq]);
  for (const [key, type, help, value] of values) family(key, type, help).add('', value);
  const { delays } = courier;
  if (!delays) return;
  const delay = family('courier_delay_seconds', 'histogram', 'From a decision to its place in the cluster log.');
  let cumulative = 0;
  DELAY_BUCKETS_MS.forEach((bound, index) => {
    cumulative += delays.counts[index]!;
    delay.add(labelText({ le: String(bound / 1000) }), cumulative, '_bucket');
  });
  delay.add(labelText({ le: '+Inf' }), delays.count, '_bucket');
  delay.add('', delays.sumMs / 1000, '_sum');
  delay.add('', delays.count, '_count');
};
