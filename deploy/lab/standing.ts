/** What the labs that are left standing have in common. */
import { relative, resolve } from 'node:path';
import type { Host } from './lab.ts';

export const examples = resolve(import.meta.dirname, '../examples');
export const understudy = resolve(import.meta.dirname, '../../bin/understudy');

/** The command as it can be typed where the lab was started. */
export const understudyHere = (): string => relative(process.cwd(), understudy);

export const onHost = (host: Host): string => `ip netns exec ${host.namespace}`;
