/**
 * OpenSSL as it lies in Node's own binary, through koffi. Node's `tls` costs a stream, several objects and callbacks a
 * read; here a read is one call. Pointers are passed as numbers (addresses have 47 bits); none leaves the files that
 * own what it points to. Thread-safe as OpenSSL is: a context may be shared, a session belongs to one thread.
 */
import assert from 'node:assert/strict';
import koffi from 'koffi';
import type { KoffiFunc } from 'koffi';
import { libc } from './libc.ts';

/** An address; 0 is null. */
export type Pointer = number;

export const SSL_ERROR_WANT_READ = 2;
export const SSL_ERROR_WANT_WRITE = 3;
export const SSL_ERROR_SYSCALL = 5;
export const SSL_ERROR_ZERO_RETURN = 6;

export const SSL_VERIFY_PEER = 1;
export const SSL_VERIFY_FAIL_IF_NO_PEER_CERT = 2;
export const X509_V_OK = 0;

/** Commands of SSL_CTX_ctrl and SSL_ctrl, which OpenSSL's macros stand for. */
export const SSL_CTRL_MODE = 33;
export const SSL_CTRL_SET_READ_AHEAD = 41;
export const SSL_CTRL_SET_SESS_CACHE_MODE = 44;
export const SSL_CTRL_SET_TLSEXT_HOSTNAME = 55;
export const SSL_CTRL_SET_TLSEXT_TICKET_KEYS = 59;
export const SSL_CTRL_CHAIN_CERT = 89;
export const SSL_CTRL_SET_GROUPS_LIST = 92;
export const SSL_CTRL_SET_VERIFY_CERT_STORE = 106;
export const SSL_CTRL_SET_MIN_PROTO_VERSION = 123;
export const SSL_CTRL_SET_MAX_PROTO_VERSION = 124;

const load = () => {
  const library = koffi.load(null);
  const bind = <T extends (...args: never[]) => unknown>(declaration: string) =>
    library.func(declaration) as unknown as KoffiFunc<T>;
  /** Owner of one pointer, which lets it go. */
  const free = (name: string) => bind<(pointer: Pointer) => void>(`void ${name}(uint64_t)`);
  const get = (name: string) => bind<(pointer: Pointer) => Pointer>(`uint64_t ${name}(uint64_t)`);
  const count = (name: string) => bind<(pointer: Pointer) => number>(`int ${name}(uint64_t)`);
  const pair = (name: string) => bind<(pointer: Pointer, other: Pointer) => number>(`int ${name}(uint64_t, uint64_t)`);
  const text = (name: string) => bind<(pointer: Pointer) => string | null>(`const char *${name}(uint64_t)`);
  const setText = (name: string) => bind<(pointer: Pointer, value: string) => number>(`int ${name}(uint64_t, str)`);
  return {
    TLS_server_method: bind<() => Pointer>('uint64_t TLS_server_method()'),
    TLS_client_method: bind<() => Pointer>('uint64_t TLS_client_method()'),
    SSL_CTX_new: get('SSL_CTX_new'),
    SSL_CTX_free: free('SSL_CTX_free'),
    SSL_CTX_ctrl: bind<(context: Pointer, command: number, long: number, pointer: Pointer) => number>(
      'int64_t SSL_CTX_ctrl(uint64_t, int, int64_t, uint64_t)',
    ),
    SSL_CTX_ctrl_bytes: bind<(context: Pointer, command: number, long: number, bytes: Buffer) => number>(
      'int64_t SSL_CTX_ctrl(uint64_t, int, int64_t, const void *)',
    ),
    SSL_CTX_ctrl_text: bind<(context: Pointer, command: number, long: number, text: string) => number>(
      'int64_t SSL_CTX_ctrl(uint64_t, int, int64_t, str)',
    ),
    SSL_CTX_set_default_read_buffer_len: bind<(context: Pointer, length: number) => void>(
      'void SSL_CTX_set_default_read_buffer_len(uint64_t, size_t)',
    ),
    SSL_CTX_set_options: bind<(context: Pointer, options: number) => number>(
      'uint64_t SSL_CTX_set_options(uint64_t, uint64_t)',
    ),
    SSL_CTX_set_cipher_list: setText('SSL_CTX_set_cipher_list'),
    SSL_CTX_set_ciphersuites: setText('SSL_CTX_set_ciphersuites'),
    SSL_CTX_use_certificate: pair('SSL_CTX_use_certificate'),
    SSL_CTX_use_PrivateKey: pair('SSL_CTX_use_PrivateKey'),
    SSL_CTX_check_private_key: count('SSL_CTX_check_private_key'),
    SSL_CTX_set1_cert_store: bind<(context: Pointer, store: Pointer) => void>(
      'void SSL_CTX_set1_cert_store(uint64_t, uint64_t)',
    ),
    SSL_CTX_add_client_CA: pair('SSL_CTX_add_client_CA'),
    SSL_CTX_set_verify: bind<(context: Pointer, mode: number, callback: Pointer) => void>(
      'void SSL_CTX_set_verify(uint64_t, int, uint64_t)',
    ),
    SSL_CTX_get0_param: get('SSL_CTX_get0_param'),
    SSL_CTX_set_session_id_context: bind<(context: Pointer, id: Buffer, length: number) => number>(
      'int SSL_CTX_set_session_id_context(uint64_t, const void *, unsigned int)',
    ),
    SSL_CTX_set_alpn_select_cb: bind<(context: Pointer, callback: unknown, argument: number) => void>(
      'void SSL_CTX_set_alpn_select_cb(uint64_t, void *, uint64_t)',
    ),
    SSL_select_next_proto: bind<
      (out: Pointer, outLength: Pointer, ours: Buffer, length: number, theirs: Pointer, theirLength: number) => number
    >('int SSL_select_next_proto(uint64_t, uint64_t, const void *, unsigned int, uint64_t, unsigned int)'),

    SSL_new: get('SSL_new'),
    SSL_free: free('SSL_free'),
    SSL_set_fd: bind<(ssl: Pointer, fd: number) => number>('int SSL_set_fd(uint64_t, int)'),
    SSL_get_rbio: get('SSL_get_rbio'),
    SSL_set_accept_state: free('SSL_set_accept_state'),
    SSL_set_connect_state: free('SSL_set_connect_state'),
    SSL_set_server_name: bind<(ssl: Pointer, command: number, type: number, name: string) => number>(
      'int64_t SSL_ctrl(uint64_t, int, int64_t, str)',
    ),
    SSL_do_handshake: count('SSL_do_handshake'),
    SSL_read: bind<(ssl: Pointer, into: Buffer, length: number) => number>('int SSL_read(uint64_t, void *, int)'),
    SSL_write: bind<(ssl: Pointer, bytes: Buffer, length: number) => number>(
      'int SSL_write(uint64_t, const void *, int)',
    ),
    SSL_has_pending: count('SSL_has_pending'),
    SSL_shutdown: count('SSL_shutdown'),
    SSL_set_shutdown: bind<(ssl: Pointer, mode: number) => void>('void SSL_set_shutdown(uint64_t, int)'),
    SSL_get_error: bind<(ssl: Pointer, returned: number) => number>('int SSL_get_error(uint64_t, int)'),
    SSL_get_version: text('SSL_get_version'),
    SSL_get_current_cipher: get('SSL_get_current_cipher'),
    SSL_CIPHER_get_name: text('SSL_CIPHER_get_name'),
    SSL_get0_alpn_selected: bind<(ssl: Pointer, data: Buffer, length: Buffer) => void>(
      'void SSL_get0_alpn_selected(uint64_t, void *, void *)',
    ),
    SSL_get0_peer_certificate: get('SSL_get0_peer_certificate'),
    SSL_get_verify_result: bind<(ssl: Pointer) => number>('int64_t SSL_get_verify_result(uint64_t)'),
    SSL_get1_session: get('SSL_get1_session'),
    SSL_set_session: pair('SSL_set_session'),
    SSL_session_reused: count('SSL_session_reused'),
    SSL_SESSION_is_resumable: count('SSL_SESSION_is_resumable'),
    SSL_SESSION_free: free('SSL_SESSION_free'),

    BIO_new_mem_buf: bind<(bytes: Buffer, length: number) => Pointer>('uint64_t BIO_new_mem_buf(const void *, int)'),
    BIO_s_mem: bind<() => Pointer>('uint64_t BIO_s_mem()'),
    BIO_new: get('BIO_new'),
    BIO_read: bind<(bio: Pointer, into: Buffer, length: number) => number>('int BIO_read(uint64_t, void *, int)'),
    BIO_number_read: bind<(bio: Pointer) => number>('uint64_t BIO_number_read(uint64_t)'),
    BIO_free: count('BIO_free'),
    PEM_read_bio_X509: bind<(bio: Pointer, out: Pointer, password: Pointer, text: string) => Pointer>(
      'uint64_t PEM_read_bio_X509(uint64_t, uint64_t, uint64_t, str)',
    ),
    PEM_read_bio_X509_CRL: bind<(bio: Pointer, out: Pointer, password: Pointer, text: string) => Pointer>(
      'uint64_t PEM_read_bio_X509_CRL(uint64_t, uint64_t, uint64_t, str)',
    ),
    PEM_read_bio_PrivateKey: bind<(bio: Pointer, out: Pointer, password: Pointer, text: string) => Pointer>(
      'uint64_t PEM_read_bio_PrivateKey(uint64_t, uint64_t, uint64_t, str)',
    ),
    X509_free: free('X509_free'),
    X509_CRL_free: free('X509_CRL_free'),
    EVP_PKEY_free: free('EVP_PKEY_free'),
    X509_get_subject_name: get('X509_get_subject_name'),
    X509_get_issuer_name: get('X509_get_issuer_name'),
    X509_NAME_print_ex: bind<(bio: Pointer, name: Pointer, indent: number, flags: number) => number>(
      'int X509_NAME_print_ex(uint64_t, uint64_t, int, unsigned long)',
    ),
    i2d_X509: bind<(certificate: Pointer, out: Buffer | null) => number>('int i2d_X509(uint64_t, void *)'),
    X509_STORE_new: bind<() => Pointer>('uint64_t X509_STORE_new()'),
    X509_STORE_free: free('X509_STORE_free'),
    X509_STORE_add_cert: pair('X509_STORE_add_cert'),
    X509_STORE_add_crl: pair('X509_STORE_add_crl'),
    X509_STORE_set_flags: bind<(store: Pointer, flags: number) => number>(
      'int X509_STORE_set_flags(uint64_t, unsigned long)',
    ),
    X509_VERIFY_PARAM_set1_host: bind<(parameters: Pointer, host: string, length: number) => number>(
      'int X509_VERIFY_PARAM_set1_host(uint64_t, str, size_t)',
    ),
    X509_VERIFY_PARAM_set1_ip_asc: setText('X509_VERIFY_PARAM_set1_ip_asc'),
    X509_VERIFY_PARAM_set_hostflags: bind<(parameters: Pointer, flags: number) => void>(
      'void X509_VERIFY_PARAM_set_hostflags(uint64_t, unsigned int)',
    ),
    X509_verify_cert_error_string: text('X509_verify_cert_error_string'),

    ERR_get_error: bind<() => number>('unsigned long ERR_get_error()'),
    ERR_reason_error_string: text('ERR_reason_error_string'),
  };
};

let loaded: ReturnType<typeof load> | null = null;

export const openssl = (): ReturnType<typeof load> => (loaded ??= load());

/** What an entry of OpenSSL's error queue says. Reasons count within a library. */
export type OpensslError = { library: number; reason: number; text: string };

export const ERR_LIB_SSL = 20;
export const ERR_LIB_PEM = 9;
const REASONS = 2 ** 23;
const LIBRARIES = 2 ** 8;

/**
 * All errors since the queue was empty; the first is the cause of the others. The queue belongs to the thread and Node
 * uses it as well: whoever sees a call fail takes them, so that no later call is blamed.
 */
export const takeErrors = (): OpensslError[] => {
  const errors: OpensslError[] = [];
  for (;;) {
    const packed = openssl().ERR_get_error();
    if (packed === 0) return errors;
    errors.push({
      library: Math.floor(packed / REASONS) % LIBRARIES,
      reason: packed % REASONS,
      text: openssl().ERR_reason_error_string(packed) ?? `error ${packed.toString(16)}`,
    });
  }
};

export const takeError = (): OpensslError | null => takeErrors()[0] ?? null;

/** For calls that fail only on what somebody has configured. @throws Error that says what OpenSSL says of `what` */
export const assertOpenssl = (succeeded: boolean, what: string): void => {
  if (!succeeded) throw new Error(`${what}: ${takeError()?.text ?? 'refused by OpenSSL'}`);
};

/**
 * What lies at an address that OpenSSL told, copied. Not by koffi's `decode`: in a thread that is being terminated the
 * memory for it can't be had, which koffi doesn't notice.
 */
export const bytesAt = (pointer: bigint, length: number): Buffer => {
  assert(pointer !== 0n, 'OpenSSL tells no null pointer with a length');
  const bytes = Buffer.alloc(length);
  libc().memcpy(bytes, pointer, length);
  return bytes;
};

type SelectAlpn = (out: Pointer, outLength: Pointer, theirs: Pointer, theirLength: number, argument: number) => number;

/** A function of ours for SSL_CTX_set_alpn_select_cb. It is called within a call of SSL_do_handshake, on its thread. */
export const alpnCallback = (select: SelectAlpn): unknown => {
  const type = koffi.proto('int (uint64_t, uint64_t, uint64_t, uint64_t, unsigned int, uint64_t)');
  return koffi.register(
    (_ssl: Pointer, out: Pointer, outLength: Pointer, theirs: Pointer, theirLength: number, argument: number) =>
      select(out, outLength, theirs, theirLength, argument),
    koffi.pointer(type),
  );
};
