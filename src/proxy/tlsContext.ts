/**
 * TLS at a listener: which certificate a client is shown, and on what terms. All is decided when it is made; a reload
 * makes another one, and connections that were accepted before keep what they began with.
 */
import { createHash, X509Certificate } from 'node:crypto';
import {
  alpnCallback,
  assertOpenssl,
  openssl,
  SSL_CTRL_MODE,
  SSL_CTRL_SET_GROUPS_LIST,
  SSL_CTRL_SET_MAX_PROTO_VERSION,
  SSL_CTRL_SET_MIN_PROTO_VERSION,
  SSL_CTRL_SET_READ_AHEAD,
  SSL_CTRL_SET_SESS_CACHE_MODE,
  SSL_CTRL_SET_TLSEXT_TICKET_KEYS,
  SSL_CTRL_SET_VERIFY_CERT_STORE,
  SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
  SSL_VERIFY_PEER,
} from '../net/openssl.ts';
import type { Pointer } from '../net/openssl.ts';
import { makeStore, namesOf, readCertificates, useCertificate } from './certificates.ts';
import { READ_AHEAD_BYTES, TlsWire } from './tlsWire.ts';

export type TlsVersion = 'TLSv1.2' | 'TLSv1.3';

/** Plain data, for workers. */
export type TlsTerms = {
  minVersion: TlsVersion;
  maxVersion: TlsVersion;
  /** OpenSSL's list for TLS 1.2; null is OpenSSL's own. */
  ciphers: string | null;
  /** For TLS 1.3. */
  cipherSuites: string | null;
  /** Of key exchange: `X25519:P-256` */
  curves: string | null;
};

export type ServerTlsModel = TlsTerms & {
  /** PEM texts, each a chain and its key; the first is for clients that name no host, or one that none is for. */
  certificates: string[];
  /** Refuses those clients. */
  strictSni: boolean;
  /** Protocols in order of preference; null leaves ALPN out. */
  alpn: string[] | null;
  /** Whether clients may take up a session again. */
  tickets: boolean;
  /** PEM texts. */
  clientCertificates: { ca: string; crl: string | null; verify: 'required' | 'optional' } | null;
};

/** Of the keys that tickets are sealed with: a name, and keys for HMAC and AES. From a source of randomness. */
export const TICKET_KEYS_BYTES = 80;

/** RFC 8446 section 6: a fatal alert `unrecognized_name`, for a client that is refused before anything was accepted. */
export const UNRECOGNIZED_NAME_ALERT = Buffer.from([21, 3, 3, 0, 2, 2, 112]);

const VERSIONS: Record<TlsVersion, number> = { 'TLSv1.2': 0x303, 'TLSv1.3': 0x304 };

/** Taking part of a write, and the rest of it from elsewhere: streams copy what couldn't leave. */
const SSL_MODE_ENABLE_PARTIAL_WRITE = 1;
const SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER = 2;
/** Only the chain that was configured is sent. */
const SSL_MODE_NO_AUTO_CHAIN = 8;
/** An idle connection holds no buffers: 34 KiB less for each. */
const SSL_MODE_RELEASE_BUFFERS = 16;
const SSL_OP_NO_TICKET = 2 ** 14;
const SSL_OP_NO_COMPRESSION = 2 ** 17;
const SSL_OP_CIPHER_SERVER_PREFERENCE = 2 ** 22;
/** A client could make a server work without end. */
const SSL_OP_NO_RENEGOTIATION = 2 ** 30;
/** A session is in its ticket; nothing is kept for clients that may never return. */
const SSL_SESS_CACHE_OFF = 0;
/** READ_AHEAD_BYTES and what a record has around it, also where the client has asked for small records. */
const READ_BUFFER_BYTES = READ_AHEAD_BYTES + 1024;
const TAKES_REFERENCE = 1;

const OPENSSL_NPN_NEGOTIATED = 1;
const SSL_TLSEXT_ERR_OK = 0;
const SSL_TLSEXT_ERR_ALERT_FATAL = 2;

/** What both sides of a proxy want. @throws Error */
export const prepareContext = (context: Pointer, terms: TlsTerms): void => {
  const ssl = openssl();
  const modes =
    SSL_MODE_ENABLE_PARTIAL_WRITE +
    SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER +
    SSL_MODE_NO_AUTO_CHAIN +
    SSL_MODE_RELEASE_BUFFERS;
  ssl.SSL_CTX_ctrl(context, SSL_CTRL_MODE, modes, 0);
  ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, 0);
  ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_READ_AHEAD, 1, 0);
  ssl.SSL_CTX_set_default_read_buffer_len(context, READ_BUFFER_BYTES);
  ssl.SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION + SSL_OP_NO_RENEGOTIATION + SSL_OP_CIPHER_SERVER_PREFERENCE);
  ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, VERSIONS[terms.minVersion], 0);
  ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MAX_PROTO_VERSION, VERSIONS[terms.maxVersion], 0);
  const { ciphers, cipherSuites, curves } = terms;
  if (ciphers !== null) assertOpenssl(ssl.SSL_CTX_set_cipher_list(context, ciphers) === 1, 'ciphers');
  if (cipherSuites !== null) assertOpenssl(ssl.SSL_CTX_set_ciphersuites(context, cipherSuites) === 1, 'cipherSuites');
  if (curves !== null) {
    assertOpenssl(ssl.SSL_CTX_ctrl_text(context, SSL_CTRL_SET_GROUPS_LIST, 0, curves) === 1, 'curves');
  }
};

const OPENSSLS_OWN: TlsTerms = {
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.3',
  ciphers: null,
  cipherSuites: null,
  curves: null,
};

/** Whether OpenSSL knows what terms name. @throws Error that says what it doesn't */
export const tryTerms = (terms: Partial<TlsTerms>): void => {
  const context = openssl().SSL_CTX_new(openssl().TLS_server_method());
  assertOpenssl(context !== 0, 'SSL_CTX_new');
  try {
    prepareContext(context, { ...OPENSSLS_OWN, ...terms });
  } finally {
    openssl().SSL_CTX_free(context);
  }
};

export class ServerContexts {
  readonly #model: ServerTlsModel;
  readonly #store: Pointer;
  /** By the indices of the certificates in it: those of one name, one for each kind of key. */
  readonly #contexts = new Map<string, Pointer>();
  readonly #byName = new Map<string, Pointer>();
  readonly #default: Pointer;

  /** Needs no look at files. @throws Error that says what can't be used */
  constructor(model: ServerTlsModel, ticketKeys: Buffer | null) {
    this.#model = model;
    const { clientCertificates } = model;
    this.#store = clientCertificates ? makeStore([clientCertificates.ca], clientCertificates.crl) : 0;
    try {
      const certificates = model.certificates.map((pem) => new X509Certificate(pem));
      const indicesByName = new Map<string, number[]>();
      certificates.forEach((certificate, index) => {
        for (const name of new Set(namesOf(certificate))) {
          indicesByName.set(name, [...(indicesByName.get(name) ?? []), index]);
        }
      });
      for (const [name, indices] of indicesByName) this.#byName.set(name, this.#contextOf(indices, certificates));
      const firstName = namesOf(certificates[0]!)[0];
      this.#default = this.#contextOf(indicesByName.get(firstName ?? '') ?? [0], certificates);
      if (ticketKeys) this.setTicketKeys(ticketKeys);
    } catch (error) {
      this.free();
      throw error;
    }
  }

  /** Whether a client that names this host (in lower case) may connect; see UNRECOGNIZED_NAME_ALERT. */
  accepts(serverName: string | null): boolean {
    return !this.#model.strictSni || this.#find(serverName) !== undefined;
  }

  /** The server's side of a connection that was accepted; nothing of it must have been read. */
  accept(fd: number, serverName: string | null): TlsWire {
    const ssl = openssl().SSL_new(this.#find(serverName) ?? this.#default);
    assertOpenssl(ssl !== 0, 'SSL_new');
    return new TlsWire(ssl, fd, serverName, null);
  }

  /**
   * TICKET_KEYS_BYTES that all workers share, so that a session can be taken up at any of them. Tickets under earlier
   * keys lead to a full handshake.
   */
  setTicketKeys(keys: Buffer): void {
    for (const context of this.#contexts.values()) {
      const set = openssl().SSL_CTX_ctrl_bytes(context, SSL_CTRL_SET_TLSEXT_TICKET_KEYS, keys.length, keys);
      assertOpenssl(set === 1, 'ticket keys');
    }
  }

  /** Connections go on with their own references. */
  free(): void {
    for (const context of this.#contexts.values()) openssl().SSL_CTX_free(context);
    this.#contexts.clear();
    this.#byName.clear();
    if (this.#store !== 0) openssl().X509_STORE_free(this.#store);
  }

  /** RFC 6125 section 6.4.3: a wildcard stands for one label. The exact name goes before it. */
  #find(serverName: string | null): Pointer | undefined {
    if (serverName === null) return undefined;
    const exact = this.#byName.get(serverName);
    if (exact !== undefined) return exact;
    const dot = serverName.indexOf('.');
    return dot > 0 ? this.#byName.get(`*${serverName.slice(dot)}`) : undefined;
  }

  #contextOf(indices: number[], certificates: X509Certificate[]): Pointer {
    // The first of each kind of key; OpenSSL chooses among kinds by what the client can verify.
    const kinds = new Map<string, number>();
    for (const index of indices) {
      const kind = certificates[index]!.publicKey.asymmetricKeyType ?? '';
      if (!kinds.has(kind)) kinds.set(kind, index);
    }
    const chosen = [...kinds.values()];
    const known = this.#contexts.get(chosen.join());
    if (known !== undefined) return known;
    const context = this.#makeContext(chosen.map((index) => this.#model.certificates[index]!));
    this.#contexts.set(chosen.join(), context);
    return context;
  }

  #makeContext(certificates: string[]): Pointer {
    const ssl = openssl();
    const context = ssl.SSL_CTX_new(ssl.TLS_server_method());
    assertOpenssl(context !== 0, 'SSL_CTX_new');
    try {
      prepareContext(context, this.#model);
      if (!this.#model.tickets) ssl.SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
      for (const pem of certificates) useCertificate(context, pem);
      if (this.#model.clientCertificates) this.#askForCertificates(context);
      const { alpn } = this.#model;
      if (alpn) ssl.SSL_CTX_set_alpn_select_cb(context, selectAlpn(), alpnListOf(alpn));
      const id = sessionIdContext(certificates, this.#model);
      ssl.SSL_CTX_set_session_id_context(context, id, id.length);
      return context;
    } catch (error) {
      ssl.SSL_CTX_free(context);
      throw error;
    }
  }

  #askForCertificates(context: Pointer): void {
    const ssl = openssl();
    const { ca, verify } = this.#model.clientCertificates!;
    ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_VERIFY_CERT_STORE, TAKES_REFERENCE, this.#store);
    const mode = SSL_VERIFY_PEER + (verify === 'required' ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0);
    ssl.SSL_CTX_set_verify(context, mode, 0);
    for (const authority of readCertificates(ca)) {
      ssl.SSL_CTX_add_client_CA(context, authority);
      ssl.X509_free(authority);
    }
  }
}

/**
 * A session is taken up only on the terms that it was made under: a client that has shown no certificate, or one that
 * was revoked since, must not come in by a ticket of another listener.
 */
const sessionIdContext = (certificates: string[], { clientCertificates, alpn }: ServerTlsModel): Buffer =>
  createHash('sha256')
    .update(JSON.stringify([certificates, clientCertificates, alpn]))
    .digest();

/** RFC 7301 section 3.1: names with their lengths before them. The callback gets an index, as pointers go stale. */
const alpnLists: Buffer[] = [];

const alpnListOf = (names: string[]): number => {
  const list = Buffer.concat(names.map((name) => Buffer.concat([Buffer.from([name.length]), Buffer.from(name)])));
  const known = alpnLists.findIndex((other) => other.equals(list));
  return known >= 0 ? known : alpnLists.push(list) - 1;
};

let registered: unknown = null;

/** RFC 7301 section 3.2: the server's preference decides; nothing in common ends the handshake. */
const selectAlpn = (): unknown =>
  (registered ??= alpnCallback((out, outLength, theirs, theirLength, index) => {
    const ours = alpnLists[index]!;
    const result = openssl().SSL_select_next_proto(out, outLength, ours, ours.length, theirs, theirLength);
    return result === OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
  }));
