/** What nodes of a cluster share of their checks of one backend: see machines/healthQuorum.ts. */
import { z } from 'zod';
import { asMap } from './raw.ts';
import type { At, Raw, Report } from './raw.ts';

/** With one checker a server, a node whose link is broken would take its servers down with nobody to contradict. */
const FEWEST_CHECKERS = 2;
/** Beyond this, more checkers make no verdict better. */
const MOST_CHECKERS = 64;
const DEFAULT_CHECKERS = 2;

export const sharedChecksSchema = z.strictObject({
  share: z
    .enum(['none', 'observe', 'quorum'])
    .default('none')
    .describe(
      'observe: what the checks of every node say is shown everywhere. quorum: a server is down when more than half of ' +
        'the nodes that can see anything say so.',
    ),
  divide: z
    .boolean()
    .default(false)
    .describe('Each server is checked by some of the nodes only, and the others follow; needs quorum.'),
  by: z
    .int()
    .min(FEWEST_CHECKERS)
    .max(MOST_CHECKERS)
    .default(DEFAULT_CHECKERS)
    .describe('Nodes that check each server where checks are divided. All of them do in a smaller cluster.'),
});

export type SharedChecks = z.output<typeof sharedChecksSchema>;

const NOT_SHARED: SharedChecks = { share: 'none', divide: false, by: DEFAULT_CHECKERS };

export const sharedChecksOf = ({ checks }: { checks?: SharedChecks | undefined }): SharedChecks => checks ?? NOT_SHARED;

/** What no single key of `checks` can tell, for the raw backend. */
export const checkSharedChecks = (file: Raw, backend: Raw, at: At, report: Report): void => {
  const { share = 'none', divide = false, by } = asMap(backend['checks']);
  if (divide === true && share !== 'quorum')
    report(at('checks', 'divide'), 'it needs `share: quorum`: whoever doesn’t check a server follows the verdict');
  if (by !== undefined && divide !== true)
    report(at('checks', 'by'), 'it counts only with `divide: true`; otherwise every node checks every server', true);
  if (share !== 'observe' && share !== 'quorum') return;
  if (backend['check'] === undefined || backend['check'] === false)
    report(at('checks', 'share'), `${share} needs a check, whose results are shared`);
  if (file['bus'] === undefined || file['bus'] === 'memory')
    report(at('checks', 'share'), `${share} needs other nodes to share with: \`bus: { nats: … }\``);
};

/** Of a raw backend. */
export const isByQuorum = (backend: Raw): boolean => asMap(backend['checks'])['share'] === 'quorum';

/** Whether a node has a backend of which its nodes judge together, and so can be blind. */
export const hasQuorum = ({ backends }: { backends: Record<string, { checks?: SharedChecks | undefined }> }): boolean =>
  Object.values(backends).some((backend) => sharedChecksOf(backend).share === 'quorum');
