/** The file of a Unix socket: whose it is, and who may connect. */
import { chmodSync, chownSync, readFileSync } from 'node:fs';
import { messageOf } from '../errors.ts';
import { findUser } from './users.ts';

/** Plain data for a worker; null leaves it as it is. */
export type SocketFile = { mode: number | null; uid: number | null; gid: number | null };

type Options = { mode?: number | undefined; user?: string | undefined; group?: string | undefined };

const NUMBER = /^\d+$/;

/** `name:password:GID:members` (group(5)). */
const findGroup = (name: string, groupFile: string): number | null => {
  for (const line of readFileSync(groupFile, 'utf8').split('\n')) {
    const [group, , gid] = line.split(':');
    if (group === name && NUMBER.test(gid ?? '')) return Number(gid);
  }
  return null;
};

/** Names become numbers once, when the configuration is read. */
export const socketFileOf = (
  { mode, user, group }: Options,
  { passwdFile = '/etc/passwd', groupFile = '/etc/group' } = {},
): SocketFile | { refusal: string } => {
  try {
    const uid = user === undefined ? null : NUMBER.test(user) ? Number(user) : findUser(user, passwdFile)?.uid;
    if (uid === undefined) return { refusal: `${passwdFile} has no user ${user}` };
    const gid = group === undefined ? undefined : NUMBER.test(group) ? Number(group) : findGroup(group, groupFile);
    if (gid === null) return { refusal: `${groupFile} has no group ${group}` };
    return { mode: mode ?? null, uid, gid: gid ?? null };
  } catch (error) {
    return { refusal: messageOf(error) };
  }
};

/** Between bind and listen, so that nobody connects in between. @throws with an errno's name as its code */
export const applySocketFile = (path: string, { mode, uid, gid }: SocketFile): void => {
  // -1 leaves it (chown(2)).
  if (uid !== null || gid !== null) chownSync(path, uid ?? -1, gid ?? -1);
  if (mode !== null) chmodSync(path, mode);
};
