/** Certificates, keys and revocation lists in PEM, as OpenSSL holds them. Whoever reads one frees it. */
import { X509Certificate } from 'node:crypto';
import { addressOf } from '../net/libc.ts';
import { assertOpenssl, ERR_LIB_PEM, openssl, SSL_CTRL_CHAIN_CERT, takeError } from '../net/openssl.ts';
import type { Pointer } from '../net/openssl.ts';

/** No block of the wanted kind follows: where a PEM text ends. */
const PEM_R_NO_START_LINE = 108;
/** XN_FLAG_RFC2253: without control characters and in ASCII, as values of header fields must be. */
const XN_FLAG_RFC2253 = 0x111_0317;
/** A name stands in a header field, whose length servers limit. */
const LONGEST_NAME_BYTES = 1024;
const X509_V_FLAG_CRL_CHECK = 4;
const X509_V_FLAG_CRL_CHECK_ALL = 8;
/** The caller keeps its own reference. */
const TAKES_REFERENCE = 1;

/** A key that needs a passphrase is refused; without this, OpenSSL would ask for it at the terminal. */
const NO_PASSPHRASE = '';

/** All certificates of a PEM text, in order. @throws Error */
export const readCertificates = (pem: string): Pointer[] => {
  const certificates = readAll(
    pem,
    (bio) => openssl().PEM_read_bio_X509(bio, 0, 0, NO_PASSPHRASE),
    openssl().X509_free,
  );
  if (certificates.length === 0) throw new Error('there is no certificate in it');
  return certificates;
};

/** @throws Error */
const readRevocationLists = (pem: string): Pointer[] => {
  const lists = readAll(
    pem,
    (bio) => openssl().PEM_read_bio_X509_CRL(bio, 0, 0, NO_PASSPHRASE),
    openssl().X509_CRL_free,
  );
  if (lists.length === 0) throw new Error('there is no revocation list in it');
  return lists;
};

/** @throws Error */
const readPrivateKey = (pem: string): Pointer => {
  const key = withBio(pem, (bio) => openssl().PEM_read_bio_PrivateKey(bio, 0, 0, NO_PASSPHRASE));
  if (key !== 0) return key;
  const error = takeError();
  if (!/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----/.test(pem)) throw new Error('there is no key in it');
  if (/ENCRYPTED/.test(pem)) throw new Error('the key in it needs a passphrase');
  throw new Error(`the key in it can't be read: ${error?.text ?? 'unknown'}`);
};

const withBio = <T>(pem: string, read: (bio: Pointer) => T): T => {
  const bytes = Buffer.from(pem, 'latin1');
  const bio = openssl().BIO_new_mem_buf(bytes, bytes.length);
  assertOpenssl(bio !== 0, 'BIO_new_mem_buf');
  try {
    return read(bio);
  } finally {
    openssl().BIO_free(bio);
  }
};

const readAll = (pem: string, readNext: (bio: Pointer) => Pointer, free: (one: Pointer) => void): Pointer[] =>
  withBio(pem, (bio) => {
    const found: Pointer[] = [];
    for (let next = readNext(bio); next !== 0; next = readNext(bio)) found.push(next);
    const error = takeError();
    const isEnd = error?.library === ERR_LIB_PEM && error.reason === PEM_R_NO_START_LINE;
    if (isEnd) return found;
    for (const one of found) free(one);
    throw new Error(error?.text ?? 'it is not PEM');
  });

/** The names that a certificate is for: those of its subjectAltName, or the common name of an old one without. */
export const namesOf = (certificate: X509Certificate): string[] => {
  const names = [...(certificate.subjectAltName ?? '').matchAll(/(?:^|, )DNS:([^",]+)/g)].map((match) => match[1]!);
  if (certificate.subjectAltName !== undefined) return names.map((name) => name.toLowerCase());
  const commonName = /^CN=(.+)$/m.exec(certificate.subject)?.[1];
  return commonName === undefined ? [] : [commonName.toLowerCase()];
};

/** DER. */
export const certificateBytes = (certificate: Pointer): Buffer => {
  const bytes = Buffer.allocUnsafeSlow(openssl().i2d_X509(certificate, null));
  const end = Buffer.alloc(8);
  end.writeBigUInt64LE(addressOf(bytes));
  openssl().i2d_X509(certificate, end);
  return bytes;
};

/** A distinguished name as RFC 2253 writes it: `CN=jo,O=Shop`. Cut off where it is too long for a header field. */
export const nameText = (name: Pointer): string => {
  const bio = openssl().BIO_new(openssl().BIO_s_mem());
  assertOpenssl(bio !== 0, 'BIO_new');
  const text = Buffer.alloc(LONGEST_NAME_BYTES);
  openssl().X509_NAME_print_ex(bio, name, 0, XN_FLAG_RFC2253);
  const length = Math.max(0, openssl().BIO_read(bio, text, text.length));
  openssl().BIO_free(bio);
  return text.toString('latin1', 0, length);
};

/** Trusted authorities, and what they have revoked. @throws Error */
export const makeStore = (authorities: readonly string[], revocationLists: string | null): Pointer => {
  const store = openssl().X509_STORE_new();
  assertOpenssl(store !== 0, 'X509_STORE_new');
  try {
    for (const certificate of authorities.flatMap(readCertificates)) {
      const added = openssl().X509_STORE_add_cert(store, certificate);
      openssl().X509_free(certificate);
      assertOpenssl(added === 1, 'an authority');
    }
    if (revocationLists === null) return store;
    for (const list of readRevocationLists(revocationLists)) {
      const added = openssl().X509_STORE_add_crl(store, list);
      openssl().X509_CRL_free(list);
      assertOpenssl(added === 1, 'a revocation list');
    }
    openssl().X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK + X509_V_FLAG_CRL_CHECK_ALL);
    return store;
  } catch (error) {
    openssl().X509_STORE_free(store);
    throw error;
  }
};

/** Gives a context the chain and the key of a PEM text, beside those of other kinds of keys that it has. @throws Error */
export const useCertificate = (context: Pointer, pem: string): void => {
  const ssl = openssl();
  const [leaf, ...chain] = readCertificates(pem);
  const key = readPrivateKey(pem);
  try {
    assertOpenssl(ssl.SSL_CTX_use_certificate(context, leaf!) === 1, 'the certificate');
    const fits = ssl.SSL_CTX_use_PrivateKey(context, key) === 1 && ssl.SSL_CTX_check_private_key(context) === 1;
    if (!fits) {
      takeError();
      throw new Error("the key in it is not the certificate's");
    }
    for (const one of chain) {
      assertOpenssl(ssl.SSL_CTX_ctrl(context, SSL_CTRL_CHAIN_CERT, TAKES_REFERENCE, one) === 1, 'the chain');
    }
  } finally {
    ssl.EVP_PKEY_free(key);
    for (const one of [leaf!, ...chain]) ssl.X509_free(one);
  }
};

/** Whether a server could use a certificate and its key. @throws Error that says why not */
export const tryCertificate = (pem: string): void => {
  const context = openssl().SSL_CTX_new(openssl().TLS_server_method());
  assertOpenssl(context !== 0, 'SSL_CTX_new');
  try {
    useCertificate(context, pem);
  } finally {
    openssl().SSL_CTX_free(context);
  }
};

/** Whether authorities or revocation lists can be read. @throws Error that says why not */
export const tryStore = (authorities: string | null, revocationLists: string | null): void => {
  openssl().X509_STORE_free(makeStore(authorities === null ? [] : [authorities], revocationLists));
};
