/**
 * A machine of its own, as far as programs can tell: a file system over this one whose changes are in memory, and its own
 * processes, network, cgroups and host name. For what belongs to a whole machine: a service manager, users, /etc. Nothing
 * that is done there reaches this machine, and all of it is gone with its first process. Takes root and overlayfs.
 */
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { until } from '../deploy/lab/until.ts';
import { output } from '../deploy/lab/shell.ts';

const NAMESPACES = ['--pid', '--mount', '--uts', '--ipc', '--net', '--cgroup'];

/** Everything that programs may write is a file system in memory, or read-only, before the first of them runs. */
const ROOT = `
set -eu
mount --make-rprivate /
mount -t tmpfs -o size=512M tmpfs /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
for folder in tmp run var/tmp; do mount -t tmpfs tmpfs $folder; done
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm dev/mqueue dev/hugepages
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p usr/local/lib/understudy old
mount --bind "$CHECKOUT" usr/local/lib/understudy
mount -o remount,bind,ro usr/local/lib/understudy
pivot_root . old
cd /
umount -l /old
mkdir -p /usr/local/bin
ln -sf ../lib/understudy/bin/understudy /usr/local/bin/understudy
ip link set lo up
ip link add eth0 type veth peer name wire
ip link set wire up
ip link set eth0 up
ip address add 10.9.0.11/24 dev eth0
`;

/** Null where such a machine can be made; else why not. */
export const whyNoOwnRoot = (): string | null => {
  if (process.getuid?.() !== 0) return 'it takes root';
  if (cgroupsFolder() === null) return 'cgroup2 is not mounted, or can’t be written';
  const made = spawnSync('unshare', [
    ...NAMESPACES,
    '--fork',
    'sh',
    '-c',
    'mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r',
  ]);
  return made.status === 0 ? null : `overlay file systems can’t be made here: ${String(made.stderr).trim()}`;
};

/** Where cgroup2 is mounted, also beside version 1. */
const cgroupsFolder = (): string | null => {
  const line = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .find((mount) => / cgroup2 rw/.test(mount));
  return line === undefined ? null : line.split(' ')[1]!;
};

export class OwnRoot {
  readonly #child: ChildProcess;
  readonly #cgroup: string;
  /** The first process, as this machine counts. */
  readonly #pid: number;
  output = '';

  private constructor(child: ChildProcess, cgroup: string, pid: number) {
    this.#child = child;
    this.#cgroup = cgroup;
    this.#pid = pid;
  }

  /** `script` is a shell's, run when all is set up; what it executes in the end is the first process. */
  static async start(script: string): Promise<OwnRoot> {
    const cgroup = join(cgroupsFolder()!, `understudy-test-${process.pid}`);
    mkdirSync(cgroup);
    const enter = `echo $$ > '${cgroup}/cgroup.procs'; exec unshare --fork --kill-child ${NAMESPACES.join(' ')} sh -c "$SETUP"`;
    const env = { ...process.env, CHECKOUT: resolve(import.meta.dirname, '..'), SETUP: `${ROOT}\n${script}` };
    const child = spawn('sh', ['-c', enter], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const first = await until('the first process of a root of its own', async () => {
      if (child.exitCode !== null) throw new Error('it has ended at once');
      const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim();
      return children === '' ? null : Number(children);
    });
    const root = new OwnRoot(child, cgroup, first);
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (data: Buffer) => (root.output += data.toString()));
    return root;
  }

  /** Runs a shell's script in there. @returns what it wrote */
  run(script: string): Promise<string> {
    return output('nsenter', ['--target', String(this.#pid), '--all', 'sh', '-c', script]);
  }

  /** What the script tells once it succeeds and says something. */
  until(what: string, script: string, timeoutMs?: number): Promise<string> {
    return until(what, async () => (await this.run(script).catch(() => '')).trim() || null, timeoutMs);
  }

  /** Resolves with the status that its first process ends with. */
  get exit(): Promise<number | null> {
    const { exitCode } = this.#child;
    return exitCode === null
      ? once(this.#child, 'exit').then(([code]) => code as number | null)
      : Promise.resolve(exitCode);
  }

  async end(): Promise<void> {
    // All its processes end with the first.
    this.#child.kill('SIGKILL');
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
    await until('the end of its cgroups', async () => removeFolders(this.#cgroup));
  }
}

/** A cgroup goes when its last process has. */
const removeFolders = (folder: string): boolean => {
  if (!existsSync(folder)) return true;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) removeFolders(join(folder, entry.name));
  }
  try {
    rmdirSync(folder);
    return true;
  } catch {
    writeFileSync(join(folder, 'cgroup.kill'), '1');
    return false;
  }
};
