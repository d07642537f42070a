/**
 * Basic authentication (RFC 7617). Passwords are held as digests and compared in constant time. A slow digest (scrypt)
 * is worked out by the thread pool while the request waits, never by the loop; who has been verified is remembered.
 */
import assert from 'node:assert/strict';
import { hash, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';

/** Verified credentials that a worker remembers; the oldest makes room. */
const MAX_VERIFIED = 1_000;
/** Refused ones, so that the same wrong password isn't worked out over and over. */
const MAX_REFUSED = 256;
/** Passwords being worked out at a time, by worker: the pool has other work too. */
const MAX_PENDING = 4;
/** Requests that may wait for one of them. */
const MAX_WAITING = 64;
/** Longer ones are nobody's. */
const MAX_CREDENTIALS = 1_024;
/** 64 MiB and about 200 ms a verification; OWASP's choice is 2^17, which is too much for a thing that clients can ask for. */
const MAX_SCRYPT_BYTES = 64 * 1024 * 1024;

type Fast = { kind: 'fast'; salt: Buffer; digest: Buffer };
type Slow = { kind: 'slow'; salt: Buffer; digest: Buffer; N: number; r: number; p: number };

const SCRYPT = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([\w+/]+)\$([\w+/]{22,})$/;
const SHA256 = /^\{(S?)SHA256\}([\w+/]+={0,2})$/;
const UNKNOWN = /^(?:\$(?:2[abxy]?|1|5|6|7|y|gy|apr1|argon2\w*|pbkdf2[\w-]*|scrypt)\$|\{[A-Z][A-Z\d-]*\})/;
const DIGEST_BYTES = 32;

const digestOf = (password: string, salt: Buffer): Buffer =>
  hash('sha256', Buffer.concat([Buffer.from(password, 'latin1'), salt]), 'buffer');

/** What a configuration says a password is; null for a form that can't be verified. */
const parsePassword = (text: string): Fast | Slow | null => {
  const slow = SCRYPT.exec(text);
  if (slow) {
    const [N, r, p] = [2 ** Number(slow[1]), Number(slow[2]), Number(slow[3])];
    if (N < 2 || r < 1 || p < 1 || N * r * p * 128 > MAX_SCRYPT_BYTES) return null;
    return { kind: 'slow', N, r, p, salt: Buffer.from(slow[4]!, 'base64'), digest: Buffer.from(slow[5]!, 'base64') };
  }
  const sha = SHA256.exec(text);
  if (sha) {
    const bytes = Buffer.from(sha[2]!, 'base64');
    const isWhole = sha[1] === '' ? bytes.length === DIGEST_BYTES : bytes.length > DIGEST_BYTES;
    return isWhole
      ? { kind: 'fast', digest: bytes.subarray(0, DIGEST_BYTES), salt: bytes.subarray(DIGEST_BYTES) }
      : null;
  }
  if (UNKNOWN.test(text)) return null;
  const salt = randomBytes(16);
  return { kind: 'fast', salt, digest: digestOf(Buffer.from(text, 'utf8').toString('latin1'), salt) };
};

export const passwordProblem = (text: string): string | null =>
  parsePassword(text)
    ? null
    : 'this form of a hashed password is not known here (Node has no crypt or bcrypt); allowed are $scrypt$ln=14,r=8,p=1$SALT$HASH up to 64 MiB, {SSHA256} and {SHA256} in base64, or the password itself';

/** `yes`, `no`, or that a thread of the pool is at it; `busy` when too many are. */
export type Verdict = 'yes' | 'no' | 'pending' | 'busy';

export class BasicAuth {
  /** What a client that was refused is told. */
  readonly challenge: string;
  /** The one to whom the last `yes` was said. */
  user = '';
  #users: Map<string, Fast | Slow>;
  /** Stands for those that don't exist, so that time doesn't tell who does. */
  #nobody: Fast | Slow;
  #verified = new Map<string, string>();
  #refused = new Set<string>();
  #pending = new Map<string, (() => void)[]>();

  constructor(realm: string, users: readonly (readonly [name: string, password: string])[]) {
    // RFC 7617 section 2.1: the charset tells browsers to send UTF-8.
    this.challenge = `Basic realm="${realm.replaceAll(/["\\]/g, '\\$&')}", charset="UTF-8"`;
    this.#users = new Map(
      users.map(([name, password]) => {
        const parsed = parsePassword(password);
        assert.ok(parsed, `the password of ${name} was checked before`);
        return [Buffer.from(name, 'utf8').toString('latin1'), parsed];
      }),
    );
    const like = [...this.#users.values()].find(({ kind }) => kind === 'slow');
    this.#nobody = like
      ? { ...like, digest: randomBytes(like.digest.length) }
      : { kind: 'fast', salt: randomBytes(16), digest: randomBytes(DIGEST_BYTES) };
  }

  /** Of an Authorization field's value. */
  judge(authorization: string | null): Verdict {
    if (authorization === null) return 'no';
    const known = this.#verified.get(authorization);
    if (known !== undefined) {
      this.user = known;
      return 'yes';
    }
    if (this.#refused.has(authorization)) return 'no';
    const credentials = parseCredentials(authorization);
    if (!credentials) return 'no';
    const password = this.#users.get(credentials.user);
    const stored = password ?? this.#nobody;
    if (stored.kind === 'slow') {
      if (!this.#pending.has(authorization)) {
        if (this.#pending.size >= MAX_PENDING) return 'busy';
        this.#workOut(authorization, credentials, stored, password !== undefined);
      }
      return this.#pending.get(authorization)!.length < MAX_WAITING ? 'pending' : 'busy';
    }
    const isRight = timingSafeEqual(digestOf(credentials.password, stored.salt), stored.digest);
    if (!isRight || !password) return 'no';
    this.#accept(authorization, credentials.user);
    this.user = credentials.user;
    return 'yes';
  }

  /** Calls back once when the verdict on what was `pending` is there, if need be at once. */
  wait(authorization: string, resume: () => void): void {
    const waiting = this.#pending.get(authorization);
    if (waiting) waiting.push(resume);
    else queueMicrotask(resume);
  }

  #workOut(authorization: string, { user, password }: Credentials, stored: Slow, exists: boolean): void {
    this.#pending.set(authorization, []);
    const { N, r, p, salt, digest } = stored;
    scrypt(
      Buffer.from(password, 'latin1'),
      salt,
      digest.length,
      { N, r, p, maxmem: 2 * MAX_SCRYPT_BYTES },
      (error, key) => {
        const waiting = this.#pending.get(authorization)!;
        this.#pending.delete(authorization);
        // Its parameters were checked, so only memory can have run out: what can't be verified is refused.
        if (!error && exists && timingSafeEqual(key, digest)) this.#accept(authorization, user);
        else this.#refuse(authorization);
        for (const resume of waiting) resume();
      },
    );
  }

  #accept(authorization: string, user: string): void {
    if (this.#verified.size >= MAX_VERIFIED) this.#verified.delete(this.#verified.keys().next().value!);
    this.#verified.set(authorization, user);
  }

  #refuse(authorization: string): void {
    if (this.#refused.size >= MAX_REFUSED) this.#refused.delete(this.#refused.keys().next().value!);
    this.#refused.add(authorization);
  }
}

type Credentials = { user: string; password: string };

/** RFC 7617 section 2: the first colon ends the user. Texts are bytes in a string. */
const parseCredentials = (authorization: string): Credentials | null => {
  if (authorization.length > MAX_CREDENTIALS) return null;
  const match = /^basic +([A-Za-z\d+/]+={0,2})$/i.exec(authorization);
  if (!match) return null;
  const text = Buffer.from(match[1]!, 'base64').toString('latin1');
  const colon = text.indexOf(':');
  return colon < 0 ? null : { user: text.slice(0, colon), password: text.slice(colon + 1) };
};
