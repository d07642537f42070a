import { spawnSync } from 'node:child_process';

/** Debian packages that tests need, and the program by which their presence is told. */
export const packages = [
  { name: 'nginx-light', program: 'nginx' },
  { name: 'sqlite3', program: 'sqlite3' },
  { name: 'curl', program: 'curl' },
  { name: 'openssl', program: 'openssl' },
  { name: 'keepalived', program: 'keepalived' },
  { name: 'haproxy', program: 'haproxy' },
  { name: 'iproute2', program: 'ip' },
  { name: 'nftables', program: 'nft' },
  { name: 'iputils-arping', program: 'arping' },
  { name: 'tcpdump', program: 'tcpdump' },
  { name: 'tshark', program: 'tshark' },
  { name: 'procps', program: 'ps' },
  { name: 'wrk', program: 'wrk' },
  { name: 'nghttp2-client', program: 'h2load' },
  { name: 'nats-server', program: 'nats-server' },
  { name: 'systemd', program: 'systemd-analyze' },
  { name: 'util-linux', program: 'unshare' },
];

export const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;

export const isRoot = process.getuid?.() === 0;
