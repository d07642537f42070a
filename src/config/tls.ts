/** TLS in the configuration: at a bind, and to servers. */
import { resolve } from 'node:path';
import { z } from 'zod';

const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const;
const version = z.enum(VERSIONS, {
  error: `not a version that is offered; allowed are ${VERSIONS.join(', ')}: those before are broken (RFC 8996)`,
});

const terms = {
  minVersion: version.default('TLSv1.2'),
  maxVersion: version.default('TLSv1.3').describe('Below TLSv1.3 only to work around a broken peer.'),
  ciphers: z.string().min(1).optional().describe('For TLS 1.2, as OpenSSL lists them: ECDHE+AESGCM:ECDHE+CHACHA20.'),
  cipherSuites: z.string().min(1).optional().describe('For TLS 1.3: TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384.'),
  curves: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Groups for the key exchange, the preferred one first: X25519:P-256. OpenSSL begins with X25519MLKEM768, which is ' +
        'safe from quantum computers and takes 7 KiB more of memory for each connection than X25519.',
    ),
};

type Versions = { minVersion: (typeof VERSIONS)[number]; maxVersion: (typeof VERSIONS)[number] };
const inOrder = ({ minVersion, maxVersion }: Versions) => minVersion <= maxVersion;
const outOfOrder = { error: 'is below minVersion', path: ['maxVersion'] };

const keyPair = z.union([
  z.string().min(1),
  z.strictObject({
    chain: z.string().min(1).describe('PEM file with the certificate and those between it and the authority.'),
    key: z.string().min(1).describe('PEM file with its key, without a passphrase.'),
  }),
]);

/** RFC 7301 section 3.1: a length of one byte, and not zero. */
const LONGEST_PROTOCOL_BYTES = 255;

/** Of a bind: connections are decrypted here. */
export const bindTlsSchema = z
  .strictObject({
    certificates: z
      .array(keyPair)
      .min(1)
      .describe(
        'PEM files, each a chain and its key. The name that a client asks for chooses among them, of several with that ' +
          'name (RSA, ECDSA) what it can verify; the first is for all others.',
      ),
    strictSni: z
      .boolean()
      .default(false)
      .describe('Clients that ask for no name, or one without certificate, are refused.'),
    alpn: z
      .array(z.string().min(1).max(LONGEST_PROTOCOL_BYTES))
      .min(1)
      .optional()
      .describe(
        'Protocols, the preferred one first. In mode http h2 and http/1.1, which are the default; in mode tcp any.',
      ),
    ...terms,
    tickets: z
      .boolean()
      .default(true)
      .describe('Whether a client may take up its session again, at any worker: most of a handshake’s cost is saved.'),
    clientCertificates: z
      .strictObject({
        ca: z.string().min(1).describe('PEM file with the authorities whose certificates clients may show.'),
        verify: z.enum(['required', 'optional']).default('required').describe('optional: a client may show none.'),
        crl: z.string().min(1).optional().describe('PEM file with revocation lists, one for each authority.'),
      })
      .optional(),
  })
  .refine(inOrder, outOfOrder);

const toServers = z
  .strictObject({
    verify: z.boolean().default(true).describe('Whether the certificate and its name must be valid.'),
    ca: z.string().min(1).optional().describe('PEM file with the authorities to trust, instead of those of Node.js.'),
    crl: z.string().min(1).optional().describe('PEM file with revocation lists, one for each authority.'),
    serverName: z
      .string()
      .min(1)
      .optional()
      .describe('Name for SNI and verification; default: the host of the address.'),
    certificate: keyPair.optional().describe('Shown to servers that ask for one.'),
    ...terms,
  })
  .refine(inOrder, outOfOrder);

/** Of a server, and of a backend for all of its servers: connections to it are encrypted. False where there is none. */
export const serverTlsSchema = z
  .union([z.boolean(), toServers])
  .transform((value) => (value === true ? toServers.parse({}) : value));

export type BindTls = z.output<typeof bindTlsSchema>;
export type ServerTls = Exclude<z.output<typeof serverTlsSchema>, boolean>;
export type KeyPair = z.output<typeof keyPair>;

/** Where the configuration lies decides about relative paths. */
export const resolveBindTls = (tls: BindTls, folder: string): void => {
  tls.certificates = tls.certificates.map((pair) => resolvePair(pair, folder));
  const { clientCertificates } = tls;
  if (!clientCertificates) return;
  clientCertificates.ca = resolve(folder, clientCertificates.ca);
  if (clientCertificates.crl !== undefined) clientCertificates.crl = resolve(folder, clientCertificates.crl);
};

export const resolveServerTls = (tls: ServerTls, folder: string): void => {
  if (tls.ca !== undefined) tls.ca = resolve(folder, tls.ca);
  if (tls.crl !== undefined) tls.crl = resolve(folder, tls.crl);
  if (tls.certificate !== undefined) tls.certificate = resolvePair(tls.certificate, folder);
};

const resolvePair = (pair: KeyPair, folder: string): KeyPair =>
  typeof pair === 'string'
    ? resolve(folder, pair)
    : { chain: resolve(folder, pair.chain), key: resolve(folder, pair.key) };
