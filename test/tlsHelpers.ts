/** Certificates of a little authority, and sessions over real sockets whose steps a test takes one by one. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { acceptFrom, listenOn, localOf, socketAddressOf, startConnecting } from '../src/net/tcpSocket.ts';
import type { Wire } from '../src/net/wire.ts';
import type { ClientTlsModel } from '../src/proxy/tlsClient.ts';
import type { ServerTlsModel, TlsTerms } from '../src/proxy/tlsContext.ts';

const SCRIPT = `set -e
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj "/CN=$1" -keyout $1.key -out $1.crt; }
sign() { # file, authority, subject, extension, more
  openssl req -newkey $KIND -nodes -subj "$3" -keyout $1.key -out $1.csr
  printf '%s\\n' "$4" > $1.ext
  openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial -extfile $1.ext -out $1.crt $5 || return 1
  cat $1.crt $1.key > $1.pem
}
ca authority; ca stranger
EC="ec -pkeyopt ec_paramgen_curve:prime256v1"
KIND=$EC
sign shop authority /CN=shop.test "subjectAltName=DNS:shop.test,DNS:*.shop.test,IP:127.0.0.1" "-days 2"
sign api authority /CN=api.shop.test "subjectAltName=DNS:api.shop.test" "-days 2"
OLD=subjectAltName=DNS:old.test
sign old authority /CN=old.test $OLD "-not_before 20200101000000Z -not_after 20200102000000Z" ||
  sign old authority /CN=old.test $OLD "-days -1"
sign jo authority "/O=Shop/CN=Jo, the \\"first\\"" "extendedKeyUsage=clientAuth" "-days 2"
sign eve authority /CN=eve "extendedKeyUsage=clientAuth" "-days 2"
sign mallory stranger /CN=mallory "extendedKeyUsage=clientAuth" "-days 2"
KIND=rsa:2048
sign rsa authority /CN=shop.test "subjectAltName=DNS:shop.test" "-days 2"
openssl pkey -in shop.key -aes128 -passout pass:secret -out locked.key
touch index.txt; echo 01 > crlnumber
printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=index.txt\\ncrlnumber=crlnumber\\ndefault_md=sha256\\ndefault_crl_days=2\\n' > ca.cnf
openssl ca -config ca.cnf -cert authority.crt -keyfile authority.key -revoke eve.crt
openssl ca -config ca.cnf -cert authority.crt -keyfile authority.key -gencrl -out authority.crl`;

/** Reads a file that the authority has made: `shop.pem`, `authority.crt`. */
export type Files = { folder: string; read(name: string): string; remove(): void };

export const makeCertificates = (): Files => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-tls-'));
  execFileSync('sh', ['-c', SCRIPT], { cwd: folder, stdio: 'pipe' });
  return {
    folder,
    read: (name) => readFileSync(join(folder, name), 'utf8'),
    remove: () => rmSync(folder, { recursive: true }),
  };
};

export const TERMS: TlsTerms = {
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.3',
  ciphers: null,
  cipherSuites: null,
  curves: null,
};

export const serverModel = (certificates: string[], more: Partial<ServerTlsModel> = {}): ServerTlsModel => ({
  ...TERMS,
  certificates,
  strictSni: false,
  alpn: null,
  tickets: true,
  clientCertificates: null,
  ...more,
});

export const clientModel = (ca: string, more: Partial<ClientTlsModel> = {}): ClientTlsModel => ({
  ...TERMS,
  verify: true,
  ca,
  crl: null,
  serverName: 'shop.test',
  certificate: null,
  ...more,
});

/** A listening socket, closed with the test. */
export const listen = (): { fd: number; port: number } => {
  const listening = listenOn(
    { host: '127.0.0.1', port: 0 },
    { reusePort: false, freeBind: false, backlog: 64, file: { mode: null, uid: null, gid: null } },
  );
  if (!('fd' in listening)) throw new Error(listening.code);
  closeAfterwards(listening.fd);
  return { fd: listening.fd, port: (localOf(listening.fd) as { port: number }).port };
};

/** The next connection there, closed with the test. */
export const accept = async (listening: number): Promise<number> => {
  for (;;) {
    const accepted = acceptFrom(listening);
    if (accepted && 'fd' in accepted) return closeAfterwards(accepted.fd);
    await nextTurn();
  }
};

export const connect = (port: number): number => {
  const connected = startConnecting(socketAddressOf({ host: '127.0.0.1', port }));
  if (!('fd' in connected)) throw new Error(connected.code);
  return closeAfterwards(connected.fd);
};

const closeAfterwards = (fd: number): number => {
  const close = () => {
    if (open.delete(fd)) libc().close(fd);
  };
  open.add(fd);
  onTestFinished(close);
  return fd;
};

const open = new Set<number>();

export const closeNow = (fd: number): void => {
  open.delete(fd);
  libc().close(fd);
};

/** Both ends of a connection. */
export const socketPair = async (): Promise<[number, number]> => {
  const listening = listen();
  const client = connect(listening.port);
  return [client, await accept(listening.fd)];
};

/** Until neither has more to do: what each came to. */
export const shakeHands = async (client: Wire, server: Wire): Promise<string[]> => {
  const outcomes: string[] = ['again', 'again'];
  for (let turns = 0; outcomes.includes('again') && turns < MOST_TURNS; turns++) {
    for (const [index, wire] of [client, server].entries()) {
      if (outcomes[index] !== 'again') continue;
      const outcome = wire.handshake();
      outcomes[index] = typeof outcome === 'string' ? outcome : `${outcome.code}: ${outcome.message}`;
    }
    await nextTurn();
  }
  return outcomes;
};

/** A peer that has failed may leave the other one waiting. */
const MOST_TURNS = 2000;

/** What `step` returns once it is not undefined. */
export const until = async <T>(step: () => T | undefined): Promise<T> => {
  for (;;) {
    const result = step();
    if (result !== undefined) return result;
    await nextTurn();
  }
};
