/** The PROXY protocol: from which peers a bind takes it, and whether a server is sent it. */
import { isIP } from 'node:net';
import { z } from 'zod';

const network = z.string().refine(
  (text) => {
    if (text === 'unix') return true;
    const [address = '', length, ...more] = text.split('/');
    const bits = isIP(address) === 4 ? 32 : 128;
    if (isIP(address) === 0 || address.includes('%') || more.length > 0) return false;
    return length === undefined || (/^\d{1,3}$/.test(length) && Number(length) <= bits);
  },
  { error: 'not a network; allowed are forms like 10.0.0.0/8, 10.0.0.7, fd00::/8, and unix for a Unix socket’s peers' },
);

/** An option of a bind. */
export const acceptProxy = z.strictObject({
  from: z
    .array(network)
    .min(1)
    .describe(
      'Peers whose connections must begin with a header, of version 1 or 2. Of others none is looked for: what they ' +
        'send is the client’s own, so that nobody else can claim an address.',
    ),
  required: z.boolean().default(false).describe('Peers that are not listed are refused.'),
});

/** An option of a server, and of a backend for all of its servers. */
export const sendProxy = z
  .enum(['v1', 'v2'], { error: 'not a version of the PROXY protocol; allowed are v1, v2' })
  .describe('Connections to the server begin with a header that names the client; only clients share one in turn.');

export type AcceptProxy = z.output<typeof acceptProxy>;
