/** TLS to servers: what a connection to one is encrypted with, and what the server must prove. */
import { isIP } from 'node:net';
import { getCACertificates } from 'node:tls';
import { assertOpenssl, openssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, SSL_VERIFY_PEER } from '../net/openssl.ts';
import type { Pointer } from '../net/openssl.ts';
import { makeStore, useCertificate } from './certificates.ts';
import { prepareContext } from './tlsContext.ts';
import type { TlsTerms } from './tlsContext.ts';
import { markShutDown, TlsWire } from './tlsWire.ts';

export type ClientTlsModel = TlsTerms & {
  /** Whether the chain and the name must be valid. */
  verify: boolean;
  /** PEM text of authorities; null trusts those that Node comes with. */
  ca: string | null;
  crl: string | null;
  /** A host name, which is also sent as SNI, or an address; empty only where nothing is verified. */
  serverName: string;
  /** PEM text with a chain and its key, for servers that ask. */
  certificate: string | null;
};

const TLSEXT_NAMETYPE_host_name = 0;
/** RFC 6125 section 6.4.3: `f*.example.com` isn't a wildcard. */
const X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS = 4;

let sharedStore: Pointer = 0;

/** Some hundred certificates take a while to read: once a thread. */
const defaultStore = (): Pointer => (sharedStore ||= makeStore(getCACertificates('default'), null));

/** For the connections to one server. */
export class ClientContext {
  readonly #context: Pointer;
  readonly #sniName: string | null;
  /** Of the latest connection that brought one; the next connection proves with it who it is, without certificates. */
  #session: Pointer = 0;
  #freed = false;

  /** @throws Error that says what can't be used */
  constructor(model: ClientTlsModel) {
    const ssl = openssl();
    this.#sniName = model.serverName !== '' && isIP(model.serverName) === 0 ? model.serverName : null;
    this.#context = ssl.SSL_CTX_new(ssl.TLS_client_method());
    assertOpenssl(this.#context !== 0, 'SSL_CTX_new');
    try {
      prepareContext(this.#context, model);
      if (model.certificate !== null) useCertificate(this.#context, model.certificate);
      if (model.verify) this.#verify(model);
    } catch (error) {
      ssl.SSL_CTX_free(this.#context);
      throw error;
    }
  }

  /** The client's side of a connection that was made. */
  connect(fd: number): TlsWire {
    const ssl = openssl().SSL_new(this.#context);
    assertOpenssl(ssl !== 0, 'SSL_new');
    if (this.#sniName !== null) {
      openssl().SSL_set_server_name(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, this.#sniName);
    }
    if (this.#session !== 0) openssl().SSL_set_session(ssl, this.#session);
    return new TlsWire(ssl, fd, this.#sniName, this);
  }

  /** Of a connection that goes: by then a server of TLS 1.3 has sent its tickets. */
  keep(ssl: Pointer): void {
    markShutDown(ssl);
    const session = openssl().SSL_get1_session(ssl);
    if (session === 0) return;
    if (!this.#freed && openssl().SSL_SESSION_is_resumable(session) === 1) {
      this.#dropSession();
      this.#session = session;
    } else {
      openssl().SSL_SESSION_free(session);
    }
  }

  /** Connections go on with their own references. */
  free(): void {
    this.#freed = true;
    this.#dropSession();
    openssl().SSL_CTX_free(this.#context);
  }

  #dropSession(): void {
    if (this.#session !== 0) openssl().SSL_SESSION_free(this.#session);
    this.#session = 0;
  }

  #verify({ ca, crl, serverName }: ClientTlsModel): void {
    const ssl = openssl();
    const store =
      ca === null && crl === null ? defaultStore() : makeStore(ca === null ? getCACertificates('default') : [ca], crl);
    ssl.SSL_CTX_set1_cert_store(this.#context, store);
    if (store !== sharedStore) ssl.X509_STORE_free(store);
    ssl.SSL_CTX_set_verify(this.#context, SSL_VERIFY_PEER, 0);
    const parameters = ssl.SSL_CTX_get0_param(this.#context);
    ssl.X509_VERIFY_PARAM_set_hostflags(parameters, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    const set =
      this.#sniName === null
        ? ssl.X509_VERIFY_PARAM_set1_ip_asc(parameters, serverName)
        : ssl.X509_VERIFY_PARAM_set1_host(parameters, serverName, 0);
    assertOpenssl(set === 1, `the name ${serverName}`);
  }
}
