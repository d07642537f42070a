/** What a PROXY protocol header of version 2 says beside the addresses (section 2.2: type, length, value). */

const ALPN = 0x01;
const AUTHORITY = 0x02;
const CRC32C = 0x03;
const UNIQUE_ID = 0x05;
const SSL = 0x20;
const SSL_VERSION = 0x21;
const SSL_COMMON_NAME = 0x22;
const SSL_CIPHER = 0x23;

const CLIENT_SSL = 0x01;
const CLIENT_CERTIFICATE = 0x02 | 0x04;

const TLV_HEADER_BYTES = 3;
/** The client's bits, and the result of verification. */
const SSL_HEADER_BYTES = 5;
/** Section 2.2.5. */
const MAX_UNIQUE_ID_BYTES = 128;
/** RFC 1035 section 2.3.4. */
const MAX_AUTHORITY_BYTES = 255;

export type ProxyTls = {
  /** `TLSv1.3` */
  protocol: string | null;
  cipher: string | null;
  /** Of a certificate that the client gave; `verified` says whether it is valid. */
  commonName: string | null;
  verified: boolean;
};

export type ProxyTlvs = {
  alpn: string | null;
  /** The name that the client asked for; SNI in lower case. */
  authority: string | null;
  uniqueId: Buffer | null;
  /** Null when the client did not use TLS. */
  tls: ProxyTls | null;
};

type Tlv = { type: number; at: number; value: Buffer };

/** Null when lengths don't add up. */
const split = (bytes: Buffer, from: number): Tlv[] | null => {
  const found: Tlv[] = [];
  let at = from;
  while (at < bytes.length) {
    if (bytes.length - at < TLV_HEADER_BYTES) return null;
    const end = at + TLV_HEADER_BYTES + bytes.readUInt16BE(at + 1);
    if (end > bytes.length) return null;
    found.push({ type: bytes[at]!, at, value: bytes.subarray(at + TLV_HEADER_BYTES, end) });
    at = end;
  }
  return found;
};

/**
 * Reads those from `from` to the header's end; unknown types are skipped, of several of one type the first counts. Null
 * when they are malformed or the checksum is wrong.
 */
export const readTlvs = (header: Buffer, from: number): ProxyTlvs | null => {
  const tlvs: ProxyTlvs = { alpn: null, authority: null, uniqueId: null, tls: null };
  const all = split(header, from);
  if (all === null) return null;
  for (const { type, at, value } of all) {
    switch (type) {
      case ALPN:
        tlvs.alpn ??= value.toString('latin1');
        break;
      case AUTHORITY:
        if (!isAuthority(value)) return null;
        tlvs.authority ??= value.toString('latin1').toLowerCase();
        break;
      case UNIQUE_ID:
        if (value.length > MAX_UNIQUE_ID_BYTES) return null;
        // The header's bytes are the connection's input buffer, which is used again.
        tlvs.uniqueId ??= Buffer.from(value);
        break;
      case CRC32C:
        if (value.length !== 4 || value.readUInt32BE(0) !== checksumOf(header, at + TLV_HEADER_BYTES)) return null;
        break;
      case SSL: {
        const tls = readTls(value);
        if (tls === null) return null;
        if (tls !== 'none') tlvs.tls ??= tls;
        break;
      }
      default:
    }
  }
  return tlvs;
};

/** Visible characters and what UTF-8 needs: it is to be compared with names, logged, and sent on. */
const isAuthority = (value: Buffer): boolean =>
  value.length <= MAX_AUTHORITY_BYTES && value.every((byte) => byte > 0x20 && byte !== 0x7f);

/** Section 2.2.6. */
const readTls = (value: Buffer): ProxyTls | 'none' | null => {
  if (value.length < SSL_HEADER_BYTES) return null;
  const parts = split(value, SSL_HEADER_BYTES);
  if (parts === null) return null;
  if ((value[0]! & CLIENT_SSL) === 0) return 'none';
  const text = (type: number, encoding: BufferEncoding): string | null =>
    parts.find((part) => part.type === type)?.value.toString(encoding) ?? null;
  return {
    protocol: text(SSL_VERSION, 'latin1'),
    cipher: text(SSL_CIPHER, 'latin1'),
    commonName: text(SSL_COMMON_NAME, 'utf8'),
    verified: (value[0]! & CLIENT_CERTIFICATE) !== 0 && value.readUInt32BE(1) === 0,
  };
};

export const writeTlvs = ({ alpn, authority, uniqueId, tls }: Partial<ProxyTlvs>): Buffer[] => [
  ...(alpn == null ? [] : [tlv(ALPN, Buffer.from(alpn, 'latin1'))]),
  ...(authority == null ? [] : [tlv(AUTHORITY, Buffer.from(authority, 'latin1'))]),
  ...(uniqueId == null ? [] : [tlv(UNIQUE_ID, uniqueId)]),
  ...(tls == null ? [] : [tlv(SSL, tlsValue(tls))]),
];

const tlv = (type: number, value: Buffer): Buffer => {
  const header = Buffer.alloc(TLV_HEADER_BYTES);
  header[0] = type;
  header.writeUInt16BE(value.length, 1);
  return Buffer.concat([header, value]);
};

const tlsValue = ({ protocol, cipher, commonName, verified }: ProxyTls): Buffer => {
  const header = Buffer.alloc(SSL_HEADER_BYTES);
  header[0] = CLIENT_SSL | (commonName === null ? 0 : CLIENT_CERTIFICATE);
  header.writeUInt32BE(verified ? 0 : 1, 1);
  return Buffer.concat([
    header,
    ...(protocol === null ? [] : [tlv(SSL_VERSION, Buffer.from(protocol, 'latin1'))]),
    ...(cipher === null ? [] : [tlv(SSL_CIPHER, Buffer.from(cipher, 'latin1'))]),
    ...(commonName === null ? [] : [tlv(SSL_COMMON_NAME, Buffer.from(commonName, 'utf8'))]),
  ]);
};

/** RFC 4960 Appendix B: the reflected form of the polynomial 0x1EDC6F41. */
const CRC32C_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0x82f63b78 : 0);
  return value;
});

/** Of the whole header, with zeroes in place of the checksum (section 2.2.3). */
const checksumOf = (header: Buffer, checksumAt: number): number => {
  let crc = 0xffffffff;
  for (let index = 0; index < header.length; index++) {
    const byte = index >= checksumAt && index < checksumAt + 4 ? 0 : header[index]!;
    crc = (crc >>> 8) ^ CRC32C_TABLE[(crc ^ byte) & 0xff]!;
  }
  return (crc ^ 0xffffffff) >>> 0;
};
