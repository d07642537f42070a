/**
 * Kills a running node with SIGKILL at random moments, again and again on one journal, and looks at what is left each
 * time: the journal opens, no seq is missing, every record is decided again the same way, and what an operator was
 * told is done is still so after the next start. `node test/killNine.ts 100 [SEED]` runs it by itself.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, createServer, get } from 'node:http';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { seededRandom } from '../actors/random.ts';
import type { Random } from '../actors/random.ts';
import type { StateView } from '../src/api/state.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { lastStates } from '../src/lastStates.ts';
import { verify } from '../src/worlds/replay.ts';

export type KillsResult = {
  kills: number;
  records: number;
  events: number;
  acknowledged: number;
  answered: number;
  requests: number;
};

const SERVERS = ['web1', 'web2', 'web3'];
/** This share is killed while it starts, or a little later. */
const EARLY_DEATHS = 0.3;
const LONGEST_START_MS = 2_000;
/** Of the others, counted from the moment at which its API answers. */
const LONGEST_LIFE_MS = 1_500;
const FLAP_EVERY_MS = 60;

type Admin = 'ready' | 'drain' | 'maintenance';
/** What an operator may find: the last command that was acknowledged, or one that was under way at the end. */
type Wanted = Map<string, Set<Admin>>;

/** Throws at the first thing that is wrong; the message names the kill and the seed. */
export const killAgainAndAgain = async (kills: number, seed: number): Promise<KillsResult> => {
  const random = seededRandom(seed);
  const folder = mkdtempSync(join(tmpdir(), 'understudy-kill-'));
  const servers = await Promise.all(SERVERS.map(startServer));
  const flapping = setInterval(() => {
    const server = servers[Math.floor(random() * servers.length)]!;
    server.isWell = !server.isWell;
  }, FLAP_EVERY_MS);
  const result: KillsResult = { kills: 0, records: 0, events: 0, acknowledged: 0, answered: 0, requests: 0 };
  const wanted: Wanted = new Map(SERVERS.map((name) => [name, new Set<Admin>(['ready'])]));
  const journal = join(folder, 'lb1.db');
  const config = join(folder, 'understudy.yaml');
  writeFileSync(config, configOf(servers.map(({ port }) => port)));
  try {
    for (let kill = 1; kill <= kills; kill++) {
      try {
        await oneLife(config, random, wanted, result);
        result.kills = kill;
        if (result.answered > 0) Object.assign(result, checked(journal, wanted));
      } catch (error) {
        throw new Error(`kill ${kill} of seed ${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
    return result;
  } finally {
    clearInterval(flapping);
    for (const { server } of servers) {
      server.closeAllConnections();
      server.close();
    }
    rmSync(folder, { recursive: true, force: true });
  }
};

const configOf = (ports: number[]): string => `
node: lb1
journal: { path: ./lb1.db }
api: { listen: 127.0.0.1:0 }
workers: 1
frontends: { shop: { mode: http, bind: ['127.0.0.1:0'], use: web } }
backends:
  web:
    check: { type: http, path: /, interval: 20ms, timeout: 500ms, rise: 2, fall: 2 }
    servers:
${ports.map((port, index) => `      - { name: ${SERVERS[index]}, address: "127.0.0.1:${port}" }`).join('\n')}
`;

type FlappingServer = { server: Server; port: number; isWell: boolean };

const startServer = async (): Promise<FlappingServer> => {
  const server = createServer((_request, response) => {
    response.statusCode = flapping.isWell ? 200 : 503;
    response.end('here I am');
  });
  const flapping: FlappingServer = { server, port: 0, isWell: true };
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  flapping.port = (server.address() as AddressInfo).port;
  return flapping;
};

const oneLife = async (config: string, random: Random, wanted: Wanted, result: KillsResult): Promise<void> => {
  const node = spawn(resolve(import.meta.dirname, '../bin/understudy'), ['run', config], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let errors = '';
  node.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString()));
  const ended = once(node, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const diesEarly = random() < EARLY_DEATHS;
  const lifeMs = random() * (diesEarly ? LONGEST_START_MS : LONGEST_LIFE_MS);
  const killLater = () => setTimeout(() => node.kill('SIGKILL'), lifeMs);
  let killer = diesEarly ? killLater() : undefined;
  const agent = new Agent({ keepAlive: true });
  try {
    const api = await apiOf(node);
    killer ??= killLater();
    if (api !== null) await operate(api, node, random, wanted, result, agent);
    const [code, signal] = await ended;
    if (signal !== 'SIGKILL') throw new Error(`the node ended by itself, with ${code}: ${errors}`);
  } finally {
    clearTimeout(killer);
    agent.destroy();
    node.kill('SIGKILL');
    await ended;
  }
};

/** Null when it was killed before it had one. */
const apiOf = async (node: ChildProcess): Promise<{ url: string; journal: string } | null> => {
  for await (const line of createInterface({ input: node.stdout! })) {
    const { api, journal } = JSON.parse(line) as { api?: string; journal?: string };
    if (api === undefined || journal === undefined) continue;
    node.stdout!.resume();
    return { url: api, journal };
  }
  return null;
};

/** Commands and traffic until the node is gone. */
const operate = async (
  { url, journal }: { url: string; journal: string },
  node: ChildProcess,
  random: Random,
  wanted: Wanted,
  result: KillsResult,
  agent: Agent,
): Promise<void> => {
  result.answered++;
  const token = readFileSync(`${journal}.token`, 'utf8').trim();
  const isGone = () => node.exitCode !== null || node.signalCode !== null;
  const state = await stateOf(url);
  for (const { name, admin } of (state?.pools ?? []).flatMap(({ servers }) => servers))
    assertWanted(name, admin as Admin, wanted);
  const port = state?.frontends[0]?.listeners[0]?.port ?? null;
  const traffic = port === null ? null : trafficTo(port, agent, isGone, result);
  while (!isGone()) {
    const server = SERVERS[Math.floor(random() * SERVERS.length)]!;
    const admin = (['ready', 'drain', 'maintenance'] as const)[Math.floor(random() * 3)]!;
    // Maintenance stands over drain.
    const after = admin === 'drain' && wanted.get(server)!.has('maintenance') ? 'maintenance' : admin;
    wanted.get(server)!.add(after);
    try {
      const response = await fetch(`${url}/api/commands`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: JSON.stringify({ type: `server.${admin}`, pool: 'web', server }),
      });
      const answer = (await response.json()) as { recorded: boolean; after: string };
      if (!answer.recorded) throw new Error(`${server} ${admin} was not recorded`);
      wanted.set(server, new Set([answer.after.split(',')[1] as Admin]));
      result.acknowledged++;
    } catch (error) {
      if ((error as Error).message.includes('not recorded')) throw error;
      // Killed with a command under way: it may have been done or not.
      break;
    }
    await wait(random() * 40);
  }
  await traffic;
};

/** Null when it was killed meanwhile. */
const stateOf = async (url: string): Promise<StateView | null> => {
  try {
    return (await (await fetch(`${url}/api/state`)).json()) as StateView;
  } catch {
    return null;
  }
};

const trafficTo = async (port: number, agent: Agent, isGone: () => boolean, result: KillsResult): Promise<void> => {
  while (!isGone()) {
    await new Promise<void>((done) => {
      const request = get({ host: '127.0.0.1', port, agent }, (response) => {
        result.requests++;
        response.resume().on('close', done);
      });
      request.on('error', () => done());
    });
    await wait(5);
  }
};

const assertWanted = (server: string, admin: Admin, wanted: Wanted): void => {
  const allowed = [...wanted.get(server)!];
  if (!allowed.includes(admin))
    throw new Error(`${server} is ${admin}; an operator had wanted ${allowed.join(' or ')}`);
};

const checked = (journal: string, wanted: Wanted): { records: number; events: number } => {
  const reader = new JournalReader(journal);
  try {
    let next = 1;
    for (const { seq } of reader.rows()) {
      if (seq !== next) throw new Error(`record ${next} is missing; ${seq} follows`);
      next++;
    }
    const { divergence, events, rows } = verify(reader);
    if (divergence) throw new Error(`diverges: ${JSON.stringify(divergence)}`);
    for (const [id, { admin }] of lastStates(journal).servers) assertWanted(id.split('/')[2]!, admin, wanted);
    return { records: rows, events };
  } finally {
    reader.close();
  }
};

if (import.meta.main) {
  const [kills = '100', seed = '1'] = process.argv.slice(2);
  console.log(JSON.stringify(await killAgainAndAgain(Number(kills), Number(seed))));
}
