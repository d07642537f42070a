/** nginx on a host of the lab: what stands behind the balancer, or in its place. */
import { mkdtempSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Host } from './lab.ts';
import type { LabProcess } from './process.ts';
import { until } from './until.ts';

const TEMPORARY = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];

/** Answers `text` on port 80 of all the host's addresses, also of those that it gets later; listens when this returns. */
export const startNginx = async (host: Host, text: string): Promise<LabProcess> => {
  const folder = mkdtempSync(join(host.folder, `${host.name}-nginx-`));
  const file = join(folder, 'nginx.conf');
  writeFileSync(
    file,
    `
user root;
worker_processes 1;
pid ${folder}/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
  access_log off;
  ${TEMPORARY.map((kind) => `${kind}_temp_path ${folder}/${kind};`).join('\n  ')}
  server {
    listen 80 backlog=4096;
    listen [::]:80 backlog=4096;
    default_type text/plain;
    location / { return 200 "${text}\\n"; }
  }
}
`,
  );
  const nginx = await host.spawn('nginx', ['-e', 'stderr', '-p', folder, '-c', file, '-g', 'daemon off;']);
  await until(`nginx on ${host.name}`, async () => {
    if (nginx.exit) throw new Error(`nginx on ${host.name} ended: ${nginx.lines.map((line) => line.text).join('\n')}`);
    // In /proc, because a connection would be an event for whoever watches.
    return (await host.run('cat', ['/proc/net/tcp'])).includes(':0050 00000000:0000 0A');
  });
  return nginx;
};
