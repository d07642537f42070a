/** What a backend lets its live traffic say of its servers: observation, outliers, panic. */
import { z } from 'zod';
import type { ServerSettings } from '../../machines/backendServer.ts';
import type { PoolSettings } from '../../machines/pool.ts';
import type { ObserverSettings } from '../../machines/trafficObserver.ts';
import type { ObserveModel } from '../proxy/observer.ts';
import { duration } from './values.ts';

/** `50 %`, `50%` or 50. In percent. */
const percent = () =>
  z
    .union([z.string(), z.number()], { error: 'not a percentage; allowed are forms like 50 %, 12.5' })
    .transform((value, context) => {
      const match = /^\s*(\d+(?:\.\d+)?)\s*%?\s*$/.exec(String(value));
      if (match && Number(match[1]) <= 100) return Number(match[1]);
      context.addIssue({
        code: 'custom',
        message: `${JSON.stringify(value)} is not a percentage; allowed are 0 to 100, in forms like 50 %, 12.5`,
      });
      return z.NEVER;
    });

const MANY = 65_535;

const layer = z.enum(['layer4', 'layer7']);

const DEFAULT_ERROR_LIMIT = 10;

const observation = z.union([
  layer.transform((value) => ({ layer: value, errorLimit: DEFAULT_ERROR_LIMIT, onError: 'failCheck' as const })),
  z.strictObject({
    layer: layer.describe(
      'layer4: connections that can’t be made are errors. layer7: also 5xx answers (but 501 and 505), answers that are ' +
        'invalid, cut off or late.',
    ),
    errorLimit: z
      .int()
      .min(1)
      .max(MANY)
      .default(DEFAULT_ERROR_LIMIT)
      .describe('Errors in a row, over all workers, that lead to `onError`; a success starts the count anew.'),
    onError: z
      .enum(['fastInterval', 'failCheck', 'suddenDeath', 'markDown'])
      .default('failCheck')
      .describe(
        'fastInterval: check it soon. failCheck: as if a check had failed. suddenDeath: the next failed check marks it ' +
          'down. markDown: at once.',
      ),
  }),
]);

const outlierDetection = z.strictObject({
  layer: layer.optional().describe('What counts as an error; default: that of `observe`, else layer7.'),
  consecutiveErrors: z
    .int()
    .min(0)
    .max(MANY)
    .default(5)
    .describe('Errors in a row, over all workers, that get a server ejected; 0: none do.'),
  errorRate: z
    .strictObject({
      above: percent().prefault(50).describe('Share of errors above which a server is ejected.'),
      minimumRequests: z.int().min(1).default(20).describe('Fewer exchanges in the interval say nothing.'),
      interval: duration({ min: 1000 }).prefault('10s').describe('It begins with an error.'),
    })
    .optional(),
  baseEjection: duration({ min: 100 })
    .prefault('30s')
    .describe(
      'The first ejection lasts so long, the second one twice as long; each such time that goes well forgives one.',
    ),
  maxEjection: duration({ min: 100 }).prefault('300s').describe('No ejection lasts longer.'),
  maxEjected: percent()
    .prefault(50)
    .describe('Share of the pool that may be ejected at a time, rounded down; one that works always stays.'),
});

/** Keys of a backend. */
export const observeSchema = {
  observe: observation
    .optional()
    .describe('Let errors of live traffic count against a server’s health; needs a check.'),
  outliers: outlierDetection
    .optional()
    .describe('Take servers out of traffic for a time whose answers fail; needs no check.'),
  panic: percent()
    .prefault(0)
    .describe(
      'When fewer than this share of the primaries are well, health isn’t believed and all take traffic; 0: never.',
    ),
};

type ObserveConfig = {
  check: unknown;
  observe?: z.output<typeof observation> | undefined;
  outliers?: z.output<typeof outlierDetection> | undefined;
  panic?: number;
};

type Report = (path: string[], message: string) => void;

/** What no single key can tell, for the raw backend: `report` gets a path within it. */
export const checkObserve = (backend: Readonly<Record<string, unknown>>, report: Report): void => {
  const checked = typeof backend['check'] === 'object' && backend['check'] !== null;
  if (backend['observe'] !== undefined && !checked)
    report(['observe'], 'needs a check, whose failures it adds to; `outliers` works without one');
};

/** Null when nothing of the backend's traffic is observed: then its servers have no observer. */
export const observerSettingsOf = ({ observe, outliers }: ObserveConfig): ObserverSettings | null => {
  if (!observe && !outliers) return null;
  return {
    observe: observe ? { errorLimit: observe.errorLimit, onError: observe.onError } : null,
    outliers: outliers
      ? {
          consecutiveErrors: outliers.consecutiveErrors,
          errorRate: outliers.errorRate
            ? {
                above: outliers.errorRate.above,
                minimumRequests: outliers.errorRate.minimumRequests,
                intervalMs: outliers.errorRate.interval,
              }
            : null,
          baseEjectionMs: outliers.baseEjection,
          maxEjectionMs: outliers.maxEjection,
        }
      : null,
  };
};

/** What the pool's machine has to know of it; nothing where nothing is configured, as journals of old have it. */
export const poolObservationOf = ({
  outliers,
  panic = 0,
}: ObserveConfig): Pick<PoolSettings, 'maxEjected' | 'panic'> => ({
  ...(outliers ? { maxEjected: outliers.maxEjected } : {}),
  ...(panic > 0 ? { panic } : {}),
});

/** What the server's machine has to know of it. */
export const serverObservationOf = (backend: ObserveConfig): Pick<ServerSettings, 'observed'> =>
  backend.observe || backend.outliers ? { observed: true } : {};

/** What the workers have to know of it. */
export const observeModelOf = ({ observe, outliers }: ObserveConfig): ObserveModel | null => {
  if (!observe && !outliers) return null;
  const limits = [observe?.errorLimit ?? 0, outliers?.consecutiveErrors ?? 0].filter((limit) => limit > 0);
  return {
    layer: observe?.layer ?? outliers?.layer ?? 'layer7',
    limits,
    intervalMs: outliers?.errorRate?.interval ?? 0,
  };
};
