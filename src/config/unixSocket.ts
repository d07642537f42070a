/** Options of a bind at a Unix socket: who may connect to it. */
import { z } from 'zod';

const owner = z.string().min(1).optional();

export const unixSocketOptions = {
  mode: z
    .string({ error: 'not a mode; allowed are octal digits in quotes, such as "660"' })
    .regex(/^0?[0-7]{3}$/, { error: 'not a mode; allowed are octal digits in quotes, such as "660"' })
    .transform((text) => Number.parseInt(text, 8))
    .optional()
    .describe('Permissions of the socket’s file; whoever may write may connect. Default: by the umask.'),
  user: owner.describe('Owner of the socket’s file, by name in /etc/passwd or number. Only root can give files away.'),
  group: owner.describe('Group of the socket’s file, by name in /etc/group or number.'),
};
