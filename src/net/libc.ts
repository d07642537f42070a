/**
 * The C library's calls that Node has no interface for, through koffi. A Buffer is passed by its address. koffi holds no
 * reference to it while an asynchronous call is under way: who makes one must.
 */
import assert from 'node:assert/strict';
import { constants, endianness } from 'node:os';
import koffi from 'koffi';
import type { KoffiFunc } from 'koffi';

/** Why a socket can't be had: `code` is an errno's name, `message` names the capability or the interface that lacks. */
export type SocketProblem = { code: string; message: string };

const load = () => {
  // The layouts in these files (msghdr, cmsghdr, timespec) are those of 64-bit little-endian Linux.
  assert(endianness() === 'LE' && koffi.sizeof('void *') === 8, 'Understudy needs a 64-bit little-endian machine');
  const library = koffi.load(null);
  const bind = <T extends (...args: never[]) => unknown>(declaration: string) =>
    library.func(declaration) as unknown as KoffiFunc<T>;
  return {
    socket: bind<(domain: number, type: number, protocol: number) => number>('int socket(int, int, int)'),
    bind: bind<(fd: number, address: Buffer, length: number) => number>('int bind(int, const void *, uint32_t)'),
    listen: bind<(fd: number, backlog: number) => number>('int listen(int, int)'),
    accept4: bind<(fd: number, address: Buffer, length: Buffer, flags: number) => number>(
      'int accept4(int, void *, void *, int)',
    ),
    connect: bind<(fd: number, address: Buffer, length: number) => number>('int connect(int, const void *, uint32_t)'),
    shutdown: bind<(fd: number, how: number) => number>('int shutdown(int, int)'),
    getsockopt: bind<(fd: number, level: number, name: number, value: Buffer, length: Buffer) => number>(
      'int getsockopt(int, int, int, void *, void *)',
    ),
    send: bind<(fd: number, data: Buffer, length: number, flags: number) => number>(
      'int64_t send(int, const void *, size_t, int)',
    ),
    getsockname: bind<(fd: number, address: Buffer, length: Buffer) => number>('int getsockname(int, void *, void *)'),
    setsockopt: bind<(fd: number, level: number, name: number, value: Buffer, length: number) => number>(
      'int setsockopt(int, int, int, const void *, uint32_t)',
    ),
    sendto: bind<
      (fd: number, data: Buffer, length: number, flags: number, address: Buffer, addressLength: number) => number
    >('int64_t sendto(int, const void *, size_t, int, const void *, uint32_t)'),
    sendmsg: bind<(fd: number, message: Buffer, flags: number) => number>('int64_t sendmsg(int, const void *, int)'),
    recv: bind<(fd: number, data: Buffer, length: number, flags: number) => number>(
      'int64_t recv(int, void *, size_t, int)',
    ),
    recvfrom: bind<
      (fd: number, data: Buffer, length: number, flags: number, address: Buffer, addressLength: Buffer) => number
    >('int64_t recvfrom(int, void *, size_t, int, void *, void *)'),
    recvmsg: bind<(fd: number, message: Buffer, flags: number) => number>('int64_t recvmsg(int, void *, int)'),
    read: bind<(fd: number, data: Buffer, length: number) => number>('int64_t read(int, void *, size_t)'),
    write: bind<(fd: number, data: Buffer, length: number) => number>('int64_t write(int, const void *, size_t)'),
    fcntl: bind<(fd: number, command: number, argument: number) => number>('int fcntl(int, int, int)'),
    ioctl: bind<(fd: number, request: number, argument: Buffer) => number>('int ioctl(int, unsigned long, void *)'),
    close: bind<(fd: number) => number>('int close(int)'),
    eventfd: bind<(initial: number, flags: number) => number>('int eventfd(unsigned int, int)'),
    epoll_create1: bind<(flags: number) => number>('int epoll_create1(int)'),
    epoll_ctl: bind<(epoll: number, operation: number, fd: number, event: Buffer | null) => number>(
      'int epoll_ctl(int, int, int, const void *)',
    ),
    epoll_wait: bind<(epoll: number, events: Buffer, count: number, timeoutMs: number) => number>(
      'int epoll_wait(int, void *, int, int)',
    ),
    timerfd_create: bind<(clock: number, flags: number) => number>('int timerfd_create(int, int)'),
    timerfd_settime: bind<(fd: number, flags: number, value: Buffer, old: null) => number>(
      'int timerfd_settime(int, int, const void *, void *)',
    ),
    memcpy: bind<(to: Buffer, from: bigint, length: number) => unknown>('uint64_t memcpy(void *, uint64_t, size_t)'),
    if_nametoindex: bind<(name: string) => number>('unsigned int if_nametoindex(const char *)'),
  };
};

let loaded: ReturnType<typeof load> | null = null;

export const libc = (): ReturnType<typeof load> => (loaded ??= load());

const ERRNO_NAMES = new Map<number, string>();
// Where a number has two names (EAGAIN, EWOULDBLOCK), the first is the usual one.
for (const [name, errno] of Object.entries(constants.errno)) {
  if (!ERRNO_NAMES.has(errno)) ERRNO_NAMES.set(errno, name);
}

export const errnoName = (errno: number): string => ERRNO_NAMES.get(errno) ?? `errno ${errno}`;

/** The number of the call just made, and the numbers that a non-blocking call's caller tells apart. */
export const errno = (): number => koffi.errno();
export const { EAGAIN, EINTR, EINPROGRESS } = constants.errno;

/** Of the call just made. */
export const lastErrno = (): string => errnoName(koffi.errno());

/** The address of a Buffer's bytes, for a structure that points at them. Only of one that has its memory to itself. */
export const addressOf = (buffer: Buffer): bigint => koffi.address(buffer);
