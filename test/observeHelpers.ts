/** A configuration whose pool `web` has its live traffic observed, and traffic that fails. */
import { z } from 'zod';
import { observeSchema } from '../src/config/observe.ts';
import type { Config } from '../src/config/schema.ts';
import type { SimulatedNode } from './journalHelpers.ts';

const fragment = z.strictObject(observeSchema);

export const parseObserve = (given: Record<string, unknown>): Record<string, unknown> => fragment.parse(given);

export const withObserve = (config: Config, observe: Record<string, unknown>): Config => {
  const web = config.backends['web']!;
  return { ...config, backends: { ...config.backends, web: { ...web, ...observe } } };
};

/** A worker reports that so many answers in a row failed, the next report being of another row. */
export const failInARow = (node: SimulatedNode, server: string, errors = 5): void =>
  node.system.send(`observer/web/${server}`, {
    type: 'traffic.observed',
    passed: 0,
    failed: errors,
    row: Math.round(node.clock.monoUs() / 1000),
    consecutive: errors,
    kind: 'status',
    detail: '503',
  } as { type: string });
