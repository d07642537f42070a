/** One TLS session of OpenSSL's over a non-blocking descriptor. The descriptor stays its owner's. */
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { errno, errnoName, libc } from '../net/libc.ts';
import {
  bytesAt,
  ERR_LIB_SSL,
  openssl,
  SSL_ERROR_SYSCALL,
  SSL_ERROR_WANT_READ,
  SSL_ERROR_WANT_WRITE,
  SSL_ERROR_ZERO_RETURN,
  takeErrors,
  X509_V_OK,
} from '../net/openssl.ts';
import type { OpensslError, Pointer } from '../net/openssl.ts';
import { BROKEN, TRUNCATED, WOULD_BLOCK } from '../net/wire.ts';
import type { Wire, WireProblem } from '../net/wire.ts';
import { certificateBytes, nameText } from './certificates.ts';
import type { TlsFacts } from './stream.ts';

const SHUT_WR = 1;
const SSL_R_CERTIFICATE_VERIFY_FAILED = 134;
const SSL_R_UNEXPECTED_EOF_WHILE_READING = 294;
/** SSL_AD_REASON_OFFSET: reasons above are alerts that the peer has sent. */
const ALERTS = 1000;
/** SSL_SENT_SHUTDOWN and SSL_RECEIVED_SHUTDOWN. */
const SHUT_DOWN = 3;

/** At least this much is asked of the socket whenever nothing of a record has been read. Contexts see to it. */
export const READ_AHEAD_BYTES = 16 * 1024;
const UNKNOWN = -1;

/** Who keeps a session so that the next connection needs no whole handshake. Called with a live SSL, before it goes. */
export type SessionKeeper = { keep(ssl: Pointer): void };

export class TlsWire implements Wire {
  problem: WireProblem | null = null;
  readonly #ssl: Pointer;
  readonly #bio: Pointer;
  readonly #fd: number;
  readonly #serverName: string | null;
  readonly #keeper: SessionKeeper | null;
  #facts: TlsFacts | null = null;
  #freed = false;
  #pending = false;
  /** What reading has come to; it says so again and again. */
  #end: number | null = null;
  /** The count of bytes received when OpenSSL held none of them unread. */
  #emptyAt = UNKNOWN;

  /** Owns the SSL from now on. With a keeper it is the client's side of the connection, without the server's. */
  constructor(ssl: Pointer, fd: number, serverName: string | null, keeper: SessionKeeper | null) {
    this.#ssl = ssl;
    this.#fd = fd;
    this.#serverName = serverName;
    this.#keeper = keeper;
    assert.equal(openssl().SSL_set_fd(ssl, fd), 1, 'SSL_set_fd');
    this.#bio = openssl().SSL_get_rbio(ssl);
    if (keeper) openssl().SSL_set_connect_state(ssl);
    else openssl().SSL_set_accept_state(ssl);
  }

  handshake(): 'done' | 'again' | WireProblem {
    this.#assertAlive();
    if (this.#facts) return 'done';
    const result = openssl().SSL_do_handshake(this.#ssl);
    if (result === 1) {
      this.#facts = this.#learn();
      return 'done';
    }
    return this.#outcomeOf(result) === WOULD_BLOCK ? 'again' : (this.problem ?? NO_HANDSHAKE);
  }

  read(into: Buffer, at: number, length: number): number {
    this.#assertAlive();
    if (this.#end !== null) return this.#end;
    const ssl = openssl();
    for (let got = 0; ;) {
      const start = at + got;
      const count = ssl.SSL_read(this.#ssl, start === 0 ? into : into.subarray(start), length - got);
      if (count > 0) {
        got += count;
        if (got === length) {
          this.#pending = true;
          this.#emptyAt = UNKNOWN;
          return got;
        }
        if (this.#isSocketEmpty()) {
          this.#pending = false;
          return got;
        }
        continue;
      }
      const outcome = this.#outcomeOf(count);
      if (outcome === WOULD_BLOCK) {
        // Bytes that made no record yet may be held.
        if (ssl.BIO_number_read(this.#bio) !== this.#emptyAt) this.#emptyAt = UNKNOWN;
      } else {
        this.#end = outcome;
      }
      this.#pending = outcome !== WOULD_BLOCK;
      return got > 0 ? got : outcome;
    }
  }

  hasPending(): boolean {
    return this.#pending;
  }

  write(bytes: Buffer, start: number, end: number): number {
    this.#assertAlive();
    const ssl = openssl();
    let at = start;
    while (at < end) {
      // With partial writes, one call takes one record.
      const count = ssl.SSL_write(this.#ssl, at === 0 ? bytes : bytes.subarray(at), end - at);
      if (count > 0) at += count;
      else if (this.#outcomeOf(count) === WOULD_BLOCK) break;
      else return BROKEN;
    }
    return at - start;
  }

  shutdown(): 'done' | 'again' {
    this.#assertAlive();
    const result = openssl().SSL_shutdown(this.#ssl);
    if (result < 0 && this.#outcomeOf(result) === WOULD_BLOCK) return 'again';
    // For peers that wait for the transport's end. What else there is to say, an event of the socket tells.
    libc().shutdown(this.#fd, SHUT_WR);
    return 'done';
  }

  free(): void {
    this.#assertAlive();
    this.#freed = true;
    if (this.#facts) this.#keeper?.keep(this.#ssl);
    openssl().SSL_free(this.#ssl);
  }

  facts(): TlsFacts | null {
    return this.#facts;
  }

  /** Whether an earlier session was taken up again. */
  get resumed(): boolean {
    this.#assertAlive();
    return openssl().SSL_session_reused(this.#ssl) === 1;
  }

  #assertAlive(): void {
    assert(!this.#freed, 'a session is not used once it was freed');
  }

  /**
   * Whether the last read has emptied the socket, so that the next bytes will be told by an event, without asking the
   * kernel once more: OpenSSL holds nothing; it had asked for READ_AHEAD_BYTES with nothing held, and got fewer.
   */
  #isSocketEmpty(): boolean {
    const ssl = openssl();
    if (ssl.SSL_has_pending(this.#ssl) !== 0) return false;
    const received = ssl.BIO_number_read(this.#bio);
    const isEmpty = this.#emptyAt !== UNKNOWN && received - this.#emptyAt < READ_AHEAD_BYTES;
    this.#emptyAt = received;
    return isEmpty;
  }

  /** Of a call that did not succeed: WOULD_BLOCK, 0 at the end, TRUNCATED or BROKEN, with `problem` set for these two. */
  #outcomeOf(result: number): number {
    const ssl = openssl();
    const error = ssl.SSL_get_error(this.#ssl, result);
    if (error === SSL_ERROR_WANT_READ || error === SSL_ERROR_WANT_WRITE) return WOULD_BLOCK;
    if (error === SSL_ERROR_ZERO_RETURN) return 0;
    const failedWith = error === SSL_ERROR_SYSCALL ? errno() : 0;
    const errors = takeErrors();
    if (errors.length > 0 && !isAlert(errors.at(-1)!)) {
      // SSL_get_error looks at the thread's queue first, where somebody else may have left something. Without that it
      // takes a fatal alert, which closes too, for close_notify.
      const without = ssl.SSL_get_error(this.#ssl, result);
      if (without === SSL_ERROR_WANT_READ || without === SSL_ERROR_WANT_WRITE) return WOULD_BLOCK;
      if (without === SSL_ERROR_ZERO_RETURN) return 0;
    }
    const cause = errors.find(isAlert) ?? errors[0];
    this.problem = cause
      ? this.#problemOf(cause)
      : { code: errnoName(failedWith), message: 'the connection is broken' };
    return this.#facts && this.problem.code === 'TLS_EOF' ? TRUNCATED : BROKEN;
  }

  #problemOf(error: OpensslError): WireProblem {
    const { library, reason, text } = error;
    if (isAlert(error)) return { code: 'TLS_ALERT', message: `the peer refused: ${text}` };
    if (library !== ERR_LIB_SSL) return { code: 'TLS_PROTOCOL', message: text };
    if (reason === SSL_R_UNEXPECTED_EOF_WHILE_READING) return NO_CLOSE_NOTIFY;
    if (reason === SSL_R_CERTIFICATE_VERIFY_FAILED) {
      const result = openssl().SSL_get_verify_result(this.#ssl);
      const why = openssl().X509_verify_cert_error_string(result) ?? `error ${result}`;
      return { code: 'TLS_CERTIFICATE', message: `the peer's certificate was refused: ${why}` };
    }
    return { code: this.#facts ? 'TLS_PROTOCOL' : 'TLS_HANDSHAKE', message: text };
  }

  #learn(): TlsFacts {
    const ssl = openssl();
    return {
      serverName: this.#serverName,
      protocol: ssl.SSL_get_version(this.#ssl) ?? '',
      cipher: ssl.SSL_CIPHER_get_name(ssl.SSL_get_current_cipher(this.#ssl)) ?? '',
      alpn: this.#alpn(),
      client: this.#keeper ? null : this.#clientCertificate(),
    };
  }

  #alpn(): string | null {
    openssl().SSL_get0_alpn_selected(this.#ssl, ALPN_DATA, ALPN_LENGTH);
    const length = ALPN_LENGTH.readUInt32LE(0);
    return length === 0 ? null : bytesAt(ALPN_DATA.readBigUInt64LE(0), length).toString('latin1');
  }

  #clientCertificate(): TlsFacts['client'] {
    const ssl = openssl();
    const certificate = ssl.SSL_get0_peer_certificate(this.#ssl);
    if (certificate === 0 || ssl.SSL_get_verify_result(this.#ssl) !== X509_V_OK) return null;
    const parsed = new X509Certificate(certificateBytes(certificate));
    return {
      subject: nameText(ssl.X509_get_subject_name(certificate)),
      issuer: nameText(ssl.X509_get_issuer_name(certificate)),
      serial: parsed.serialNumber.toLowerCase(),
      fingerprint: parsed.fingerprint256.replaceAll(':', '').toLowerCase(),
      notAfter: parsed.validToDate.toISOString(),
    };
  }
}

const NO_CLOSE_NOTIFY = { code: 'TLS_EOF', message: 'the peer closed the connection without closing TLS' };
const NO_HANDSHAKE = { code: 'TLS_EOF', message: 'the peer closed TLS during the handshake' };

const isAlert = ({ library, reason }: OpensslError): boolean => library === ERR_LIB_SSL && reason >= ALERTS;

const ALPN_DATA = Buffer.alloc(8);
const ALPN_LENGTH = Buffer.alloc(4);

/** So that a connection that ends without TLS's own end leaves its session usable for the next one. */
export const markShutDown = (ssl: Pointer): void => openssl().SSL_set_shutdown(ssl, SHUT_DOWN);
