import { spawnSync } from 'node:child_process';

/** Debian packages that tests need, and the program by which their presence is told. */
export const packages = [
  { name: 'nginx-light', program: 'nginx' },
  { name: 'sqlite3', program: 'sqlite3' },
  { name: 'curl', program: 'curl' },
  { name: 'openssl', program: 'openssl' },
];

export const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;

export const isRoot = process.getuid?.() === 0;
