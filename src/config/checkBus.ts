/** What no single key of the bus can tell: one way to be known by, and files that can be read. */
import { X509Certificate } from 'node:crypto';
import { resolve } from 'node:path';
import { readProblem } from './files.ts';
import { asMap, under } from './raw.ts';
import type { At, Raw, Report } from './raw.ts';

const WAYS = ['credentials', 'nkey', 'user', 'token'];
/** What an nkey's seed begins with when it is a user's. */
const USER_SEED = /^SU[A-Z2-7]{56}$/;

export const checkBus = (file: Raw, folder: string, report: Report): void => {
  const nats = asMap(asMap(file['bus'])['nats']);
  const at = under('bus', 'nats');
  const [first, second] = WAYS.filter((way) => nats[way] !== undefined);
  if (second !== undefined) report(at(second), `${first} is given already; a node is known to NATS in one way`, true);
  if (nats['password'] !== undefined && nats['user'] === undefined)
    report(at('password'), 'a password is a user’s; name the user too', true);
  checkSecret(nats['credentials'], folder, at('credentials'), report, credentialsProblem);
  checkSecret(nats['nkey'], folder, at('nkey'), report, seedProblem);
  for (const key of ['password', 'token']) checkSecret(nats[key], folder, at(key), report, () => null);
  checkTls(nats, folder, under(...at('tls')), report);
};

const credentialsProblem = (text: string): string | null =>
  text.includes('BEGIN NATS USER JWT') && text.includes('BEGIN USER NKEY SEED')
    ? null
    : 'it has no user JWT and nkey seed, as `nsc generate creds` prints them';

const seedProblem = (text: string): string | null =>
  USER_SEED.test(text) ? null : 'it is no seed of a user, which begins with SU and has 58 letters';

const checkSecret = (
  secret: unknown,
  folder: string,
  at: (string | number)[],
  report: Report,
  problemOf: (text: string) => string | null,
): void => {
  const file = asMap(secret)['file'];
  if (typeof file === 'string') {
    const problem = readProblem(resolve(folder, file), (content) => {
      const why = content.toString().trim() === '' ? 'it is empty' : problemOf(content.toString().trim());
      if (why !== null) throw new Error(why);
    });
    if (problem !== null) report([...at, 'file'], `${file} can't be used: ${problem}`);
  } else if (typeof secret === 'string' && secret !== '') {
    const problem = problemOf(secret.trim());
    // Not the secret itself: what is printed here is seen by many.
    if (problem !== null) report(at, `it can't be used: ${problem}`);
  }
};

const checkTls = (nats: Raw, folder: string, at: At, report: Report): void => {
  const tls = asMap(nats['tls']);
  if (nats['tls'] === undefined) return;
  const read = (key: string, judge: (content: Buffer) => void) => {
    const file = tls[key];
    if (typeof file !== 'string') return;
    const problem = readProblem(resolve(folder, file), judge);
    if (problem !== null) report(at(key), `${file} can't be used: ${problem}`);
  };
  read('ca', (pem) => void new X509Certificate(pem));
  read('certificate', (pem) => void new X509Certificate(pem));
  read('key', () => {});
  for (const [one, other] of [
    ['certificate', 'key'],
    ['key', 'certificate'],
  ] as const)
    if (tls[one] !== undefined && tls[other] === undefined) report(at(one), `it needs ${other} beside it`, true);
};
