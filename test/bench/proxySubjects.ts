/** What `bench:proxy` compares: each proxy as a process, started with the same duties, and shown to fulfil them. */
import { existsSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { freePort } from '../../src/demo/processes.ts';
import { has } from '../packages.ts';
import { haproxyConfig, nginxConfig, understudyConfig } from './proxyConfigs.ts';
import type { Ports, ProxyConfig } from './proxyConfigs.ts';
import type { Origin } from './proxyOrigin.ts';
import { end, listening, start, withRetries } from './proxyProcesses.ts';
import type { Program } from './proxyProcesses.ts';

export type Ability = 'http' | 'https' | 'http2' | 'tcp' | 'webSocket';

export type Subject = {
  name: string;
  abilities: Ability[];
  takesWorkers: boolean;
  /** Whether it is slower until its code has been compiled. */
  needsWarmUp: boolean;
  /** Null: it is not installed. */
  command: ((config: ProxyConfig) => string[]) | null;
};

export type RunningSubject = { subject: Subject; program: Program; ports: Ports };

export const OURS = 'understudy';
export const REFERENCE = 'haproxy';

const understudy = join(import.meta.dirname, '../../bin/understudy');
const STREAM_MODULE = '/usr/lib/nginx/modules/ngx_stream_module.so';
const streamModule = existsSync(STREAM_MODULE) ? STREAM_MODULE : null;

const written = ({ folder, ports }: ProxyConfig, name: string, text: string): string => {
  const file = join(folder, `${ports.http}-${name}`);
  writeFileSync(file, text);
  return file;
};

const nodeForwarder = (name: string): Subject => ({
  name,
  abilities: ['http', 'https', 'webSocket'],
  takesWorkers: false,
  needsWarmUp: true,
  command: ({ ports, origin, pem }) => [
    process.execPath,
    join(import.meta.dirname, 'proxyForwarder.ts'),
    ...[name, JSON.stringify(ports), JSON.stringify(origin), pem],
  ],
});

export const subjects: Subject[] = [
  {
    name: OURS,
    abilities: ['http', 'https', 'http2', 'tcp', 'webSocket'],
    takesWorkers: true,
    needsWarmUp: true,
    command: (config) => [understudy, 'run', written(config, 'understudy.yaml', understudyConfig(config))],
  },
  {
    name: REFERENCE,
    abilities: ['http', 'https', 'http2', 'tcp', 'webSocket'],
    takesWorkers: true,
    needsWarmUp: false,
    command: has('haproxy')
      ? (config) => ['haproxy', '-db', '-f', written(config, 'haproxy.cfg', haproxyConfig(config))]
      : null,
  },
  {
    name: 'nginx',
    abilities: ['http', 'https', 'http2', 'webSocket', ...(streamModule === null ? [] : (['tcp'] as const))],
    takesWorkers: true,
    needsWarmUp: false,
    command: has('nginx')
      ? (config) => [
          ...['nginx', '-p', config.folder, '-c'],
          written(config, 'nginx.conf', nginxConfig(config, streamModule)),
        ]
      : null,
  },
  nodeForwarder('http-proxy'),
  nodeForwarder('undici'),
];

type Answer = { status: number; body: string };

const get = (port: number, path: string, host: string): Promise<Answer> =>
  new Promise((done, refuse) => {
    request({ port, path, host: '127.0.0.1', headers: { host }, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => (body += text));
      response.on('error', refuse).on('end', () => done({ status: response.statusCode!, body }));
    })
      .on('error', refuse)
      .end();
  });

/** A proxy that leaves out work would look fast. */
const assertDuties = async (name: string, port: number): Promise<void> => {
  const expected: [path: string, host: string, answer: string][] = [
    ['/seen', 'shop.example', '200 web 127.0.0.1 http'],
    ['/seen', 'api.example.com', '200 api 127.0.0.1 http'],
    ['/admin/users', 'shop.example', '403'],
  ];
  for (const [path, host, answer] of expected) {
    const { status, body } = await get(port, path, host);
    const given = status === 200 ? `${status} ${body}` : String(status);
    if (given !== answer) throw new Error(`${name} answers ${host}${path} with "${given}" instead of "${answer}"`);
  }
};

export type SubjectOptions = { origin: Origin; workers: number; cores: string | null; folder: string; pem: string };

/** Null: it is not installed. */
export const startSubject = async (subject: Subject, options: SubjectOptions): Promise<RunningSubject | null> => {
  const { command } = subject;
  return command && withRetries(() => attemptStart(subject, command, options));
};

const attemptStart = async (
  subject: Subject,
  command: NonNullable<Subject['command']>,
  options: SubjectOptions,
): Promise<RunningSubject> => {
  const ports: Ports = {
    http: await freePort(0),
    https: await freePort(0),
    tcp: await freePort(0),
    webSocket: await freePort(0),
  };
  const { cores, ...rest } = options;
  const program = start(subject.name, command({ ...rest, ports }), { cores });
  try {
    const { tcp, ...others } = ports;
    await listening(program, [...Object.values(others), ...(subject.abilities.includes('tcp') ? [tcp] : [])]);
    await assertDuties(subject.name, ports.http);
  } catch (error) {
    await end(program);
    throw error;
  }
  return { subject, program, ports };
};
