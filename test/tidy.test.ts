/** The house rules that no linter knows: who may import whom, what pure code must not touch, and no dead files. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';

const root = resolve(import.meta.dirname, '..');
const IGNORED = new Set(['node_modules', '.git', 'dist', 'data']);

const filesBelow = (folder: string): string[] =>
  readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return IGNORED.has(entry.name) ? [] : filesBelow(path);
    return path.endsWith('.ts') ? [path] : [];
  });

const read = (file: string): string => readFileSync(join(root, file), 'utf8');

/** Comments tell of what code must not do; only code is looked at. */
const codeOf = (file: string): string => read(file).replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '');

const importsOf = (file: string): string[] =>
  [...read(file).matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)].map((match) => match[1]!);

const localImportsOf = (file: string): string[] =>
  importsOf(file)
    .filter((name) => name.startsWith('.'))
    .map((name) => relative(root, resolve(root, dirname(file), name)));

describe('imports go one way: machines ← actors ← src', () => {
  test.each(filesBelow('machines'))('%s imports xstate and its own events only', (file) => {
    for (const name of importsOf(file)) {
      expect(name === 'xstate' || name.startsWith('./'), `${file} imports ${name}`).toBe(true);
    }
  });

  test.each(filesBelow('actors'))('%s imports nothing from src', (file) => {
    for (const name of localImportsOf(file)) expect(name, file).not.toMatch(/^(src|test)\//);
  });

  test.each([...filesBelow('src'), ...filesBelow('deploy')])('%s imports nothing from test', (file) => {
    for (const name of localImportsOf(file)) expect(name, file).not.toMatch(/^test\//);
  });
});

describe('what decides is pure', () => {
  const banned = [
    'Date.now',
    'new Date',
    'performance.now',
    'setTimeout',
    'setInterval',
    'Math.random',
    'process.',
    'console.',
  ];

  test.each([...filesBelow('machines'), ...filesBelow('actors')])(
    '%s touches no clock, chance, process or console',
    (file) => {
      for (const word of banned) expect(codeOf(file).includes(word), `${file} uses ${word}`).toBe(false);
    },
  );
});

test('every machine is in the catalogue', () => {
  const catalogue = read('machines/index.ts');
  const machineFiles = filesBelow('machines').filter((file) => read(file).includes('createMachine('));
  for (const file of machineFiles) expect(catalogue).toContain(`./${file.slice('machines/'.length)}'`);
});

test('no file is dead: each is imported, started as a thread or program, or a test', () => {
  const all = ['machines', 'actors', 'src', 'deploy', 'test'].flatMap(filesBelow);
  const imported = new Set(all.flatMap(localImportsOf));
  // Programs and threads are named by the files that start them.
  const named = [...all.map(read), read('package.json'), read('bin/understudy')].join('\n');
  const dead = all.filter((file) => {
    if (imported.has(file) || file.endsWith('.test.ts')) return false;
    const base = file.slice(file.lastIndexOf('/') + 1, -'.ts'.length);
    return (
      !named.includes(`threadFile('${base}'`) &&
      !named.includes(`/${base}.ts`) &&
      !named.includes(`/${base}'`) &&
      !named.includes(`'${base}.ts'`)
    );
  });
  expect(dead).toEqual([]);
});

test('leftovers are not committed', () => {
  // Spelled with a gap, so that this file doesn't name them itself.
  const words = ['TO_DO', 'FIX_ME', 'XX_X', '@ts-_ignore', '@ts-_nocheck', 'describe._only', 'test._only'];
  for (const file of ['machines', 'actors', 'src', 'deploy', 'test'].flatMap(filesBelow)) {
    for (const word of words) {
      const whole = word.replace('_', '');
      expect(read(file).includes(whole), `${file} has ${whole}`).toBe(false);
    }
  }
});
