import { expect, test } from 'vitest';
import { Family, labelText, withLabel } from '../src/api/exposition.ts';

test('a family is its help, its type and its samples, as Prometheus’ text format has them', () => {
  const family = new Family('server_weight', 'gauge', 'Weight, slow start included.');
  family.add(labelText({ pool: 'web', server: 'web1' }), 2.5);
  family.add('', 1);
  expect(family.text()).toBe(
    [
      '# HELP understudy_server_weight Weight, slow start included.',
      '# TYPE understudy_server_weight gauge',
      'understudy_server_weight{pool="web",server="web1"} 2.5',
      'understudy_server_weight 1',
      '',
    ].join('\n'),
  );
});

test('quotes, backslashes and line ends in a value are escaped', () => {
  expect(labelText({ node: 'a"b\\c\nd' })).toBe('{node="a\\"b\\\\c\\nd"}');
});

test('a label can be added behind others, or alone', () => {
  expect(withLabel(labelText({ pool: 'web' }), 'state', 'up')).toBe('{pool="web",state="up"}');
  expect(withLabel('', 'le', '+Inf')).toBe('{le="+Inf"}');
});
