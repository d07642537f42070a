/**
 * What a TLS client says first, read before the connection is accepted: who is called (SNI) and which protocols are
 * offered (ALPN) decide about the certificate, the engine and, in mode `tcp`, the backend. RFC 8446 section 4.1.2.
 */

/** `serverName` in lower case. `versions` as on the wire: 0x0304 is TLS 1.3; GREASE and unknown ones are left in. */
export type ClientHello = { serverName: string | null; alpn: string[]; versions: number[] };

/** Clients send some hundred bytes, with post-quantum keys 2 KiB. With the headers of records. */
export const LONGEST_CLIENT_HELLO_BYTES = 16 * 1024;
/** ALPN names are looked at one by one. */
const MOST_PROTOCOLS = 32;

const HANDSHAKE_RECORD = 22;
const MAJOR_VERSION = 3;
const RECORD_HEADER_BYTES = 5;
const LONGEST_RECORD_BYTES = 16 * 1024;
const CLIENT_HELLO = 1;
const MESSAGE_HEADER_BYTES = 4;
const RANDOM_BYTES = 32;
const LONGEST_SESSION_ID_BYTES = 32;
const SERVER_NAME = 0;
const ALPN = 16;
const SUPPORTED_VERSIONS = 43;
const HOST_NAME = 0;
const LONGEST_HOST_NAME_BYTES = 255;

/**
 * Of the first bytes of a connection, as many as there are: `more` when they may become a ClientHello, `notTls` when they
 * can't, or when it is malformed or doesn't fit into LONGEST_CLIENT_HELLO_BYTES.
 */
export const parseClientHello = (bytes: Buffer): ClientHello | 'more' | 'notTls' => {
  const message = joinRecords(bytes);
  if (message === 'more') return bytes.length < LONGEST_CLIENT_HELLO_BYTES ? 'more' : 'notTls';
  return message === 'notTls' ? 'notTls' : (readMessage(message) ?? 'notTls');
};

/** The ClientHello without its header. It may be split over several records (RFC 8446 section 5.1), even its header. */
const joinRecords = (bytes: Buffer): Buffer | 'more' | 'notTls' => {
  const fragments: Buffer[] = [];
  let joined = 0;
  let wanted = 0;
  for (let at = 0; wanted === 0 || joined < wanted;) {
    if (!mayBeRecord(bytes, at)) return 'notTls';
    if (bytes.length - at < RECORD_HEADER_BYTES) return 'more';
    const length = bytes.readUInt16BE(at + 3);
    if (length === 0 || length > LONGEST_RECORD_BYTES) return 'notTls';
    const start = at + RECORD_HEADER_BYTES;
    const fragment = bytes.subarray(start, start + length);
    if (joined === 0 && fragment.length > 0 && fragment[0] !== CLIENT_HELLO) return 'notTls';
    fragments.push(fragment);
    joined += fragment.length;
    at = start + length;
    if (wanted === 0 && joined >= MESSAGE_HEADER_BYTES) {
      wanted = MESSAGE_HEADER_BYTES + join(fragments).readUIntBE(1, 3);
      if (wanted > LONGEST_CLIENT_HELLO_BYTES) return 'notTls';
    }
  }
  return join(fragments).subarray(MESSAGE_HEADER_BYTES, wanted);
};

/** Judged as far as the bytes go, so that nobody waits for the rest of what is something else. */
const mayBeRecord = (bytes: Buffer, at: number): boolean =>
  (bytes.length <= at || bytes[at] === HANDSHAKE_RECORD) && (bytes.length <= at + 1 || bytes[at + 1] === MAJOR_VERSION);

const join = (fragments: Buffer[]): Buffer => (fragments.length === 1 ? fragments[0]! : Buffer.concat(fragments));

/** Null when it is malformed. */
const readMessage = (message: Buffer): ClientHello | null => {
  const reader = new Reader(message);
  const legacyVersion = reader.number(2);
  reader.bytes(RANDOM_BYTES);
  const sessionId = reader.vector(1);
  const cipherSuites = reader.vector(2);
  const compressions = reader.vector(1);
  if (reader.failed || sessionId.length > LONGEST_SESSION_ID_BYTES) return null;
  if (cipherSuites.length < 2 || cipherSuites.length % 2 !== 0 || compressions.length === 0) return null;

  const hello: ClientHello = { serverName: null, alpn: [], versions: [legacyVersion] };
  // TLS 1.2 clients may leave all extensions out.
  if (reader.left === 0) return hello;
  const extensions = new Reader(reader.vector(2));
  if (reader.failed || reader.left > 0) return null;
  const seen = new Set<number>();
  while (extensions.left > 0) {
    const type = extensions.number(2);
    const content = new Reader(extensions.vector(2));
    // RFC 8446 section 4.2: no more than one of a type. Of two names, one would decide here and the other in OpenSSL.
    if (extensions.failed || seen.has(type)) return null;
    seen.add(type);
    if (!readExtension(type, content, hello)) return null;
  }
  return hello;
};

const readExtension = (type: number, content: Reader, hello: ClientHello): boolean => {
  if (type === SERVER_NAME) return readServerName(content, hello);
  if (type === ALPN) return readProtocols(content, hello);
  if (type === SUPPORTED_VERSIONS) return readVersions(content, hello);
  return true;
};

/** RFC 6066 section 3: a list that holds one name, of the one type that there is. */
const readServerName = (content: Reader, hello: ClientHello): boolean => {
  const list = new Reader(content.vector(2));
  const type = list.number(1);
  const name = list.vector(2);
  if (content.failed || content.left > 0 || list.failed || list.left > 0 || type !== HOST_NAME) return false;
  if (name.length === 0 || name.length > LONGEST_HOST_NAME_BYTES || !isPrintable(name)) return false;
  hello.serverName = name.toString('latin1').toLowerCase().replace(/\.$/, '');
  return true;
};

/** It goes into logs and header fields. Names that aren't ASCII are sent as A-labels. */
const isPrintable = (name: Buffer): boolean => name.every((byte) => byte > 0x20 && byte < 0x7f);

/** RFC 7301 section 3.1: empty names are not allowed. */
const readProtocols = (content: Reader, hello: ClientHello): boolean => {
  const list = new Reader(content.vector(2));
  if (content.failed || content.left > 0 || list.left === 0) return false;
  while (list.left > 0) {
    const name = list.vector(1);
    if (list.failed || name.length === 0 || hello.alpn.length === MOST_PROTOCOLS) return false;
    hello.alpn.push(name.toString('latin1'));
  }
  return true;
};

/** RFC 8446 section 4.2.1: where it is sent, it alone counts. */
const readVersions = (content: Reader, hello: ClientHello): boolean => {
  const list = new Reader(content.vector(1));
  if (content.failed || content.left > 0 || list.left < 2 || list.left % 2 !== 0) return false;
  hello.versions = [];
  while (list.left > 0) hello.versions.push(list.number(2));
  return true;
};

const NOTHING = Buffer.alloc(0);

/** Reads on from what was read; once something lacks, it has failed and gives nothing any more. */
class Reader {
  failed = false;
  #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.failed ? 0 : this.#bytes.length - this.#at;
  }

  bytes(length: number): Buffer {
    if (this.left < length) {
      this.failed = true;
      return NOTHING;
    }
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  number(length: 1 | 2): number {
    const bytes = this.bytes(length);
    return this.failed ? 0 : bytes.readUIntBE(0, length);
  }

  /** Bytes with their length before them. */
  vector(lengthBytes: 1 | 2): Buffer {
    return this.bytes(this.number(lengthBytes));
  }
}
