/** A certificate that nobody has to trust. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

/** The PEM file, with its key. */
export const makeCertificate = (folder: string): string => {
  const file = join(folder, 'soak.pem');
  const subject = ['-subj', '/CN=soak.test', '-addext', 'subjectAltName=DNS:soak.test'];
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', file];
  const text = execFileSync('openssl', ['req', '-x509', '-days', '3', ...subject, ...key], { stdio: 'pipe' });
  execFileSync('sh', ['-c', `cat >> ${file}`], { input: text });
  return file;
};
