/** Elections beside keepalived in the combinations that interop.test.ts leaves out. */
import { describe } from 'vitest';
import { electBeside, obstacle } from './besideKeepalived.ts';
import type { Combination } from './besideKeepalived.ts';

const ELECTIONS: Combination[] = [
  { version: 2, family: 'ipv4', transport: 'multicast' },
  { version: 2, family: 'ipv4', transport: 'multicast', authentication: 'ah' },
  { version: 2, family: 'ipv4', transport: 'unicast' },
  { version: 2, family: 'ipv4', transport: 'unicast', authentication: 'pass' },
  { version: 2, family: 'ipv4', transport: 'multicast', authentication: 'ah', virtualMac: true },
  { version: 3, family: 'ipv4', transport: 'multicast' },
  { version: 3, family: 'ipv4', transport: 'unicast', virtualMac: true },
  { version: 3, family: 'ipv6', transport: 'unicast' },
  { version: 3, family: 'ipv6', transport: 'multicast', virtualMac: true },
];

describe.skipIf(obstacle !== null)(`beside keepalived${obstacle === null ? '' : ` (${obstacle})`}`, () => {
  for (const combination of ELECTIONS) electBeside(combination);
});
