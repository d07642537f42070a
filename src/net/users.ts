/** Users of this machine, by /etc/passwd alone: asking LDAP or sssd could hold up the control loop. */
import { readFileSync } from 'node:fs';
import { messageOf } from '../errors.ts';

export type User = { name: string; uid: number; gid: number };

/** keepalived's; a configuration that is carried over finds the same user. */
const SCRIPT_USER = 'keepalived_script';
const FALLBACK_USER = 'nobody';

/** Null when there is no such user. @throws when the file can't be read */
export const findUser = (name: string, passwdFile = '/etc/passwd'): User | null => {
  for (const line of readFileSync(passwdFile, 'utf8').split('\n')) {
    // passwd(5): name:password:UID:GID:GECOS:directory:shell
    const [user, , uid, gid] = line.split(':');
    if (user !== name || !/^\d+$/.test(uid ?? '') || !/^\d+$/.test(gid ?? '')) continue;
    return { name, uid: Number(uid), gid: Number(gid) };
  }
  return null;
};

/**
 * Whom a script runs as. By default, as root: keepalived_script, or nobody where that doesn't exist (keepalived takes
 * root then); not as root: whoever we are, which is `user: null`.
 */
export const scriptUser = (
  name: string | null,
  { ourUid = process.getuid!(), passwdFile = '/etc/passwd' } = {},
): { user: User | null } | { refusal: string } => {
  try {
    if (name === null && ourUid !== 0) return { user: null };
    const user =
      name === null
        ? (findUser(SCRIPT_USER, passwdFile) ?? findUser(FALLBACK_USER, passwdFile))
        : findUser(name, passwdFile);
    if (!user) return { refusal: `${passwdFile} has no user ${name ?? `${SCRIPT_USER} or ${FALLBACK_USER}`}` };
    if (ourUid === 0) return { user };
    if (user.uid === ourUid) return { user: null };
    return { refusal: `only root can run a script as ${user.name}` };
  } catch (error) {
    return { refusal: messageOf(error) };
  }
};
