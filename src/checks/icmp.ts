/**
 * ICMP echo through a datagram ICMP socket (allowed to the groups in net.ipv4.ping_group_range), or else a raw one
 * (CAP_NET_RAW). One socket for each address family serves all probes; while any is waiting, one asynchronous receive
 * is under way on a thread of the pool.
 */
import { randomBytes } from 'node:crypto';
import { lookup } from 'node:dns';
import ipaddr from 'ipaddr.js';
import type { CheckConfig } from '../config/schema.ts';
import { lastErrno, libc } from '../net/libc.ts';
import { AF_INET, AF_INET6, SOCK_DGRAM, SOCK_RAW, SOL_SOCKET } from '../net/socket.ts';
import { writeSocketAddress } from '../net/socketAddress.ts';
import { failed, limit, passed } from './outcome.ts';
import type { Outcome, Probe } from './outcome.ts';

const IPPROTO_ICMP = 1;
const IPPROTO_ICMPV6 = 58;
const SO_RCVTIMEO = 20;
/** How long one receive waits: bounds how long the thread of the pool is kept after the last probe. */
const RECEIVE_TIMEOUT_US = 50_000;
const ECHO_BYTES = 8;
const TOKEN_BYTES = 16;

type Family = { domain: number; protocol: number; request: number; reply: number };
const FAMILY: Record<'ipv4' | 'ipv6', Family> = {
  ipv4: { domain: AF_INET, protocol: IPPROTO_ICMP, request: 8, reply: 0 },
  ipv6: { domain: AF_INET6, protocol: IPPROTO_ICMPV6, request: 128, reply: 129 },
};

class Pinger {
  #family: Family;
  #fd: number;
  #raw: boolean;
  #waiting = new Map<string, () => void>();
  #receiving = false;
  #sequence = 0;

  private constructor(family: Family, fd: number, raw: boolean) {
    this.#family = family;
    this.#fd = fd;
    this.#raw = raw;
  }

  /** Returns the reason in words when no ICMP socket can be had. */
  static open(family: Family): Pinger | string {
    for (const type of [SOCK_DGRAM, SOCK_RAW]) {
      const fd = libc().socket(family.domain, type, family.protocol);
      if (fd < 0) continue;
      const timeout = Buffer.alloc(16);
      timeout.writeBigInt64LE(BigInt(RECEIVE_TIMEOUT_US), 8);
      libc().setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, timeout, timeout.length);
      return new Pinger(family, fd, type === SOCK_RAW);
    }
    return `no ICMP socket (${lastErrno()}): it takes CAP_NET_RAW, or this group in net.ipv4.ping_group_range`;
  }

  /** Sends one echo request; returns its token, or the reason in words why it could not be sent. */
  send(address: string, onReply: () => void): { token: string } | { problem: string } {
    const token = randomBytes(TOKEN_BYTES);
    const packet = Buffer.alloc(ECHO_BYTES + TOKEN_BYTES);
    packet[0] = this.#family.request;
    packet.writeUInt16BE(process.pid & 0xffff, 4);
    packet.writeUInt16BE(this.#sequence++ & 0xffff, 6);
    token.copy(packet, ECHO_BYTES);
    // RFC 1071; of ICMPv6 the kernel computes it, as it knows the pseudo-header.
    if (this.#family === FAMILY.ipv4) packet.writeUInt16BE(internetChecksum(packet), 2);
    const to = writeSocketAddress(address, 0);
    const sent = libc().sendto(this.#fd, packet, packet.length, 0, to, to.length);
    if (sent < 0) return { problem: `echo request could not be sent (${lastErrno()})` };
    const key = token.toString('hex');
    this.#waiting.set(key, onReply);
    this.#receive();
    return { token: key };
  }

  forget(token: string): void {
    this.#waiting.delete(token);
  }

  #receive(): void {
    if (this.#receiving || this.#waiting.size === 0) return;
    this.#receiving = true;
    const buffer = Buffer.alloc(1500);
    libc().recv.async(this.#fd, buffer, buffer.length, 0, (error: Error | null, received: number) => {
      this.#receiving = false;
      if (!error && received > 0) this.#hear(buffer.subarray(0, received));
      this.#receive();
    });
  }

  #hear(packet: Buffer): void {
    // A raw IPv4 socket delivers the IP header too; its length in 32-bit words is in the low half of the first byte.
    const offset = this.#raw && this.#family === FAMILY.ipv4 ? (packet[0]! & 0x0f) * 4 : 0;
    if (packet[offset] !== this.#family.reply) return;
    const token = packet.subarray(offset + ECHO_BYTES, offset + ECHO_BYTES + TOKEN_BYTES).toString('hex');
    const onReply = this.#waiting.get(token);
    this.#waiting.delete(token);
    onReply?.();
  }
}

const internetChecksum = (packet: Buffer): number => {
  let sum = 0;
  for (let index = 0; index < packet.length; index += 2) sum += packet.readUInt16BE(index);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
};

const pingers = new Map<Family, Pinger | string>();

export const probeIcmp: Probe<Extract<CheckConfig, { type: 'icmp' }>> = ({ address }, _check, timeoutMs, finish) => {
  let giveUp = () => {};
  let over = false;
  const end = (outcome: Outcome) => {
    over = true;
    lift();
    giveUp();
    finish(outcome);
  };
  const lift = limit(timeoutMs, () => end(failed('L3TOUT', `no echo reply within ${timeoutMs} ms`)));
  const ping = (host: string) => {
    if (over) return;
    const parsed = ipaddr.process(host);
    const family = FAMILY[parsed.kind()];
    let pinger = pingers.get(family);
    if (!pinger || typeof pinger === 'string') pingers.set(family, (pinger = Pinger.open(family)));
    if (typeof pinger === 'string') {
      end(failed('L3ERR', pinger));
      return;
    }
    const opened = pinger;
    const sent = opened.send(parsed.toString(), () => end(passed('L3OK')));
    if ('problem' in sent) end(failed('L3ERR', sent.problem));
    else giveUp = () => opened.forget(sent.token);
  };
  if (ipaddr.isValid(address.host)) {
    // Not within the caller's own turn: the outcome is always reported later.
    setImmediate(() => ping(address.host));
  } else {
    lookup(address.host, (error, host) => {
      if (error) end(failed('L3ERR', `name ${address.host} not found`));
      else ping(host);
    });
  }
  return () => {
    over = true;
    lift();
    giveUp();
  };
};
