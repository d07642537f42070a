/** Files that the configuration names: tried when it is read, so that no start and no reload fails by them. */
import { X509Certificate } from 'node:crypto';
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { messageOf } from '../errors.ts';
import { errorPageOf } from '../proxy/errorPages.ts';
import { stickyKeyProblem } from './balance.ts';
import { asMap, under } from './raw.ts';
import type { At, Raw, Report } from './raw.ts';

/** Error pages, authorities of checks, keys of sticky cookies, and the API's token. Relative paths are taken from the folder. */
export const checkFiles = (file: Raw, folder: string, report: Report): void => {
  for (const [name, frontend] of Object.entries(asMap(file['frontends'])))
    checkPages(asMap(asMap(frontend)['errorPages']), folder, under('frontends', name, 'errorPages'), report);
  for (const [name, backend] of Object.entries(asMap(file['backends']))) {
    checkPages(asMap(asMap(backend)['errorPages']), folder, under('backends', name, 'errorPages'), report);
    checkAuthority(asMap(asMap(backend)['check'])['ca'], folder, under('backends', name, 'check', 'ca'), report);
    const { key } = asMap(asMap(asMap(backend)['sticky'])['cookie']);
    checkStickyKey(asMap(key)['file'], folder, under('backends', name, 'sticky', 'cookie', 'key', 'file'), report);
  }
  const token = asMap(asMap(file['api'])['token'])['file'];
  if (typeof token !== 'string') return;
  const problem = readProblem(resolve(folder, token), (text) => {
    if (text.toString().trim() === '') throw new Error('it is empty');
  });
  if (problem !== null) report(['api', 'token', 'file'], `the token can't be used: ${problem}`);
};

const checkAuthority = (file: unknown, folder: string, at: At, report: Report): void => {
  if (typeof file !== 'string') return;
  const problem = readProblem(resolve(folder, file), (pem) => void new X509Certificate(pem));
  if (problem !== null) report(at(), `the certificate ${file} can't be used: ${problem}`);
};

const checkStickyKey = (file: unknown, folder: string, at: At, report: Report): void => {
  if (typeof file !== 'string') return;
  const problem = readProblem(resolve(folder, file), (text) => {
    const tooShort = stickyKeyProblem(text.toString().trimEnd());
    if (tooShort !== null) throw new Error(tooShort);
  });
  if (problem !== null) report(at(), `the key in ${file} can't be used: ${problem}`);
};

const checkPages = (pages: Raw, folder: string, at: At, report: Report): void => {
  for (const [status, file] of Object.entries(pages)) {
    if (typeof file !== 'string' || file === '' || !/^[45]\d\d$/.test(status)) continue;
    const problem = readProblem(resolve(folder, file), (content) => void errorPageOf(Number(status), file, content));
    if (problem !== null) report(at(status), `the page ${file} can't be used: ${problem}`);
  }
};

/** What speaks against a file: that it can't be read, or what `judge` throws. */
export const readProblem = (file: string, judge: (content: Buffer) => void): string | null => {
  try {
    judge(readFileSync(file));
    return null;
  } catch (error) {
    return messageOf(error);
  }
};

/** What speaks against writing a log there, now; a disk that fills later is another matter. */
export const logFileProblem = (path: string): string | null => {
  const folder = dirname(path);
  const existing = statSync(path, { throwIfNoEntry: false });
  if (existing?.isDirectory()) return 'it is a folder';
  if (existing) return mayWrite(path) ? null : 'this user may not write it';
  const holder = statSync(folder, { throwIfNoEntry: false });
  if (!holder) return `there is no folder ${folder}`;
  if (!holder.isDirectory()) return `${folder} is no folder`;
  return mayWrite(folder) ? null : `this user may not make files in ${folder}`;
};

const mayWrite = (path: string): boolean => {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
};
