/** The systemd units and the sysctl settings that are shipped, under a systemd of their own. */
import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { labForTest } from './lab/labHelpers.ts';
import { tempFolder, writeFile } from './nodeHelpers.ts';
import { OwnRoot, whyNoOwnRoot } from './ownRoot.ts';
import { has, isRoot } from './packages.ts';

const deploy = resolve(import.meta.dirname, '../deploy');
const systemd = join(deploy, 'systemd');

/** The units in a folder where the programs that they name are. */
const unitsWithPrograms = (): string => {
  const folder = tempFolder();
  const program = writeFile(folder, 'understudy', '');
  const unit = readFileSync(join(systemd, 'understudy.service'), 'utf8');
  writeFile(folder, 'understudy.service', unit.replace('ExecStart=understudy', `ExecStart=${program}`));
  spawnSync('chmod', ['755', program]);
  return folder;
};

describe.skipIf(!has('systemd-analyze'))('understudy.service, as systemd-analyze sees it', () => {
  test('is valid', () => {
    const unit = join(unitsWithPrograms(), 'understudy.service');
    const { status, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', '--recursive-errors=no', unit], {
      encoding: 'utf8',
    });
    expect([status, stderr]).toEqual([0, '']);
  });

  test('is hardened: an exposure below 3 of 10', () => {
    const unit = join(unitsWithPrograms(), 'understudy.service');
    const { stdout } = spawnSync('systemd-analyze', ['security', '--offline=true', '--no-pager', unit], {
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
    });
    const exposure = /Overall exposure level for understudy\.service: ([\d.]+)/.exec(stdout)?.[1];
    expect(Number(exposure), stdout).toBeLessThan(3);
  });

  test('the drop-in of nats-server is valid beside Debian’s unit', () => {
    const folder = tempFolder();
    writeFile(
      folder,
      'nats-server.service',
      '[Unit]\nDescription=NATS Server\n[Service]\nType=simple\nExecStart=/bin/true\nExecStop=/bin/true\nUser=root\n',
    );
    cpSync(join(systemd, 'nats-server.service.d'), join(folder, 'nats-server.service.d'), { recursive: true });
    const unit = join(folder, 'nats-server.service');
    const { stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', '--recursive-errors=no', unit], {
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
  });
});

const CONFIG = `
node: lb1
workers: 1
journal: { path: /var/lib/understudy/lb1.db }
frontends:
  shop: { mode: http, bind: ['10.9.0.100:80', 'unix:/run/understudy/shop.sock'], use: web, drain: 2s }
backends:
  web:
    check: { type: icmp, interval: 200ms }
    servers: [{ name: web1, address: '10.9.0.11:8080' }]
routers:
  gateway:
    vrid: 51
    interface: eth0
    priority: 150
    advertise: 100ms
    addresses: [10.9.0.100/24]
    virtualMac: true
    accept: false
  plain: { vrid: 52, interface: eth0, priority: 150, advertise: 100ms, addresses: [10.9.0.101/24] }
`;

/** Nothing but our own units: none of the machine's may run, and the targets that they name are empty. */
const BOOT = `
units=/etc/systemd/system
rm -rf $units
mkdir -p $units /etc/understudy /etc/sysusers.d
for target in sysinit basic shutdown network-online multi-user lab; do
  printf '[Unit]\\nDefaultDependencies=no\\n' > $units/$target.target
done
cp /usr/local/lib/understudy/deploy/systemd/understudy.service $units/
# A copy under another name is how a new version starts.
cp $units/understudy.service $units/understudy-next.service
for unit in understudy understudy-next; do
  mkdir $units/$unit.service.d
  printf '[Service]\\nStandardOutput=append:/run/log\\nStandardError=append:/run/log\\n' > $units/$unit.service.d/log.conf
done
cp /usr/local/lib/understudy/deploy/systemd/understudy.sysusers.conf /etc/sysusers.d/understudy.conf
systemd-sysusers understudy.conf
printf '%s' '${CONFIG.replaceAll("'", "'\\''")}' > /etc/understudy/understudy.yaml
exec env -i container=test SYSTEMD_UNIT_PATH=$units PATH="$PATH" /lib/systemd/systemd --system --unit=lab.target
`;

const isRunnable = has('systemd-analyze') && has('nft') && whyNoOwnRoot() === null;

describe.skipIf(!isRunnable)('understudy.service, under a systemd of its own', () => {
  test('a node does all its work with three capabilities, and leaves nothing when it dies', async () => {
    const machine = await OwnRoot.start(BOOT);
    onTestFinished(async ({ task }) => {
      if (task.result?.state === 'fail')
        process.stderr.write(
          `${machine.output}\n${await machine.run('cat /run/log; systemctl status --no-pager understudy').catch(String)}\n`,
        );
      await machine.end();
    });
    await machine.until('systemd', 'systemctl is-system-running || true; [ -S /run/systemd/private ] && echo here');
    await machine.run('systemctl start understudy');
    // Master, with its virtual MAC's interface, and all of the settings and rules that belong to it.
    await machine.until(
      'both addresses',
      'ip -br address | grep "^vrrp.51.*10.9.0.100" && ip -br address | grep "^eth0.*10.9.0.101"',
      60_000,
    );
    await machine.until('the check by ICMP', `curl -sf 127.0.0.1:8404/api/state | grep 'up,ready,warm'`);
    expect(await machine.run('nft list ruleset')).toContain('ip daddr 10.9.0.100 drop');
    expect(await machine.run('stat -c %U:%A /run/understudy/shop.sock')).toMatch(/^understudy:s/);
    expect(await machine.run('cat /run/log')).not.toMatch(/can't|takes CAP/);
    const main = async (unit: string) => (await machine.run(`systemctl show ${unit} -p MainPID --value`)).trim();
    const status = await machine.run(`cat /proc/${await main('understudy')}/status`);
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW.
    for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
      expect(status).toMatch(new RegExp(`^${set}:\\t0{12}3400$`, 'm'));
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
    expect(status).not.toMatch(/^Uid:\t0\t/m);

    await machine.run('systemctl reload understudy');
    await machine.until('the reload', 'grep "configuration reloaded" /run/log');

    // The guard is not killed with the node: it takes the addresses off, and then the unit starts again.
    await machine.run(`kill -KILL ${await main('understudy')}`);
    await machine.until('the end of the addresses', 'ip -br address | grep -q "10.9.0.10[01]" || echo gone');
    await machine.until('the node, again', 'ip -br address | grep "10.9.0.101"', 60_000);
    expect((await machine.run('systemctl show understudy -p NRestarts --value')).trim()).toBe('1');

    // Another version takes over; the old unit ends by itself, and the folder of sockets stays.
    await machine.until('that it serves', 'curl -sf 127.0.0.1:8404/healthz');
    await machine.run('systemctl start understudy-next');
    await machine.until(
      'the end of the old one',
      '[ "$(systemctl is-active understudy)" = inactive ] && echo ended',
      60_000,
    );
    expect(await machine.run('systemctl show understudy -p Result --value')).toBe('success\n');
    await machine.until('the addresses at the new one', 'ip -br address | grep "10.9.0.101"', 60_000);
    expect(await machine.run('ls /run/understudy')).toContain('shop.sock');

    await machine.run('systemctl stop understudy-next');
    expect(await machine.run('systemctl show understudy-next -p Result -p ExecMainStatus')).toBe(
      'Result=success\nExecMainStatus=0\n',
    );
    expect(await machine.run('ip -br address; nft list ruleset')).not.toMatch(/10\.9\.0\.10[01]/);
  }, 240_000);
});

test.skipIf(!isRoot || !has('ip') || !has('sysctl'))('60-understudy.conf: the kernel takes every setting', async () => {
  const lab = await labForTest();
  const host = await lab.host('lb1', { addresses: { eth0: ['10.9.0.11/24'] } });
  const file = join(deploy, 'sysctl.d/60-understudy.conf');
  const settings = [...readFileSync(file, 'utf8').matchAll(/^(net\.\S+) = (.+)$/gm)].map(([, key, value]) => [
    key!,
    value!,
  ]);
  expect(settings).toHaveLength(9);
  // Only those of the network have a copy in each namespace.
  await host.run('sysctl', ['--load', file]);
  for (const [key, value] of settings) {
    const set = await host.run('sysctl', ['--values', key!]);
    expect([key, set.trim().split(/\s+/).join(' ')]).toEqual([key, value]);
  }
});
