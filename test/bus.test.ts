/** The bus over real nats-servers: what passes, what is lost, and what an operator is told when it can't be had. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { jetstreamManager } from '@nats-io/jetstream';
import { nkeys } from '@nats-io/transport-node';
import { describe, expect, onTestFinished, test } from 'vitest';
import { decodeJson, encodeJson } from '../src/bus/bus.ts';
import type { BusStatus } from '../src/bus/bus.ts';
import { natsError } from '../src/bus/connection.ts';
import { NatsBus } from '../src/bus/natsBus.ts';
import { differencesOf, ensureStream } from '../src/bus/streams.ts';
import { bus as busSchema } from '../src/config/bus.ts';
import type { NatsConfig } from '../src/config/bus.ts';
import { within } from './nodeHelpers.ts';
import { natsClient, NatsServer } from './natsHelpers.ts';
import type { NatsOptions } from './natsHelpers.ts';
import { has } from './packages.ts';
import { makeCertificates } from './tlsHelpers.ts';

const startNats = async (options?: NatsOptions): Promise<NatsServer> => {
  const server = await NatsServer.start(options);
  onTestFinished(() => server.end());
  return server;
};

const natsOf = (servers: string[], rest: Record<string, unknown> = {}): NatsConfig => {
  const parsed = busSchema.parse({ nats: { servers, ...rest } });
  return (parsed as { nats: NatsConfig }).nats;
};

const startBus = (node: string, servers: string[], rest: Record<string, unknown> = {}): NatsBus => {
  const bus = new NatsBus({ cluster: 'shop', node, journalPath: '/nowhere', nats: natsOf(servers, rest) });
  onTestFinished(() => bus.close());
  return bus;
};

/** The next status for which this holds, or the present one. */
const status = (bus: NatsBus, isIt: (status: BusStatus) => boolean): Promise<BusStatus> =>
  within(
    'the status',
    new Promise((done) => {
      if (isIt(bus.status)) {
        done(bus.status);
        return;
      }
      const stop = bus.onStatus((now) => {
        if (!isIt(now)) return;
        stop();
        done(now);
      });
    }),
  );

const connected = (bus: NatsBus) => status(bus, ({ connected: is }) => is);
const refused = (bus: NatsBus) => status(bus, (now) => !now.connected && now.code !== null);

/** The subscription is known to the server when something published behind it comes back. */
const hears = async (bus: NatsBus, subject: string, heard: (value: unknown) => void): Promise<void> => {
  bus.subscribe(subject, ({ data }) => heard(decodeJson(data)));
  await bus.request('$JS.API.INFO', new Uint8Array(), 2_000);
};

describe.skipIf(!has('nats-server'))('the bus over NATS', () => {
  test('what one node publishes others hear, and it does not hear itself', async () => {
    const { url } = await startNats();
    const [one, two] = [startBus('lb1', [url]), startBus('lb2', [url])];
    await Promise.all([connected(one), connected(two)]);
    const heardByOne: unknown[] = [];
    await hears(one, 'understudy.shop.alive.*', (value) => heardByOne.push(value));
    const heard = Promise.withResolvers<unknown>();
    await hears(two, 'understudy.shop.alive.*', heard.resolve);
    one.publish('understudy.shop.alive.lb1', encodeJson({ node: 'lb1' }));
    expect(await within('heard', heard.promise)).toEqual({ node: 'lb1' });
    expect(heardByOne).toEqual([]);
  });

  test('a question is answered, or fails with a code', async () => {
    const { url } = await startNats();
    const [one, two] = [startBus('lb1', [url]), startBus('lb2', [url])];
    await Promise.all([connected(one), connected(two)]);
    two.subscribe('understudy.shop.ask.lb2', ({ data, reply }) => two.publish(reply!, data));
    await two.request('$JS.API.INFO', new Uint8Array(), 2_000);
    expect(decodeJson(await one.request('understudy.shop.ask.lb2', encodeJson(7), 2_000))).toBe(7);
    await expect(one.request('understudy.shop.ask.lb3', encodeJson(7), 2_000)).rejects.toMatchObject({
      code: 'NATS_TIMEOUT',
    });
  });

  test('a server that goes is told, and one that comes back is found; subscriptions stand', async () => {
    const server = await startNats();
    const bus = startBus('lb1', [server.url]);
    const first = await connected(bus);
    expect(first).toMatchObject({ version: expect.stringMatching(/^\d+\.\d+\.\d+/) as string });
    const heard = Promise.withResolvers<unknown>();
    bus.subscribe('news', ({ data }) => heard.resolve(decodeJson(data)));
    await server.stop('SIGKILL');
    expect(await refused(bus)).toMatchObject({ code: 'NATS_UNREACHABLE' });
    await expect(bus.request('news', encodeJson(1), 1_000)).rejects.toMatchObject({ code: 'NATS_OFFLINE' });
    await server.again();
    await connected(bus);
    await bus.request('$JS.API.INFO', new Uint8Array(), 2_000);
    const other = await natsClient(server.url);
    other.publish('news', encodeJson('again'));
    await other.drain();
    expect(await within('heard', heard.promise)).toBe('again');
  });

  test('a server that is not there at first is found when it comes', async () => {
    const server = await startNats();
    await server.stop();
    const bus = startBus('lb1', [server.url]);
    const away = await refused(bus);
    expect(away).toMatchObject({ code: 'NATS_UNREACHABLE', message: expect.stringContaining(server.url) as string });
    await server.again();
    await connected(bus);
  });

  test('wrong credentials are refused in clear words; right ones let in, from a file too', async () => {
    const key = nkeys.createUser();
    const seed = new TextDecoder().decode(key.getSeed());
    const server = await startNats({
      config: `authorization { users: [ { user: lb1, password: right }, { nkey: ${key.getPublicKey()} } ] }`,
    });
    const said = await refused(startBus('lb1', [server.url], { user: 'lb1', password: 'wrong' }));
    expect(said).toMatchObject({
      code: 'NATS_REFUSED',
      message: expect.stringContaining(`NATS at ${server.url} refuses these credentials`) as string,
    });
    expect(await refused(startBus('lb2', [server.url]))).toMatchObject({ code: 'NATS_REFUSED' });
    const file = join(server.folder, 'password');
    writeFileSync(file, 'right\n');
    await connected(startBus('lb3', [server.url], { user: 'lb1', password: { file } }));
    await connected(startBus('lb4', [server.url], { nkey: seed }));
  });

  test.skipIf(!has('openssl'))(
    'TLS with a certificate on both sides; an authority that is not trusted is named',
    async () => {
      const files = makeCertificates();
      onTestFinished(() => files.remove());
      const at = (name: string) => join(files.folder, name);
      const server = await startNats({
        config: `tls { cert_file: "${at('shop.crt')}", key_file: "${at('shop.key')}", ca_file: "${at('authority.crt')}", verify: true }`,
      });
      const ca = at('authority.crt');
      await connected(startBus('lb1', [server.url], { tls: { ca, certificate: at('jo.crt'), key: at('jo.key') } }));
      const said = await refused(startBus('lb2', [server.url], { tls: {} }));
      expect(said).toMatchObject({ code: 'NATS_UNREACHABLE', message: expect.stringMatching(/certificate/) as string });
    },
  );

  test('a server without JetStream is told by whoever needs it', async () => {
    const { url } = await startNats({ jetstream: false });
    const connection = await natsClient(url);
    onTestFinished(() => connection.close());
    const manager = await jetstreamManager(connection, { checkAPI: false });
    const wanted = { name: 'understudy-shop-log', subjects: ['understudy.shop.log.*'] };
    const error = await ensureStream(manager, wanted).catch((thrown: unknown) => natsError(thrown, [url]));
    expect(error).toMatchObject({ code: 'NATS_NO_JETSTREAM', message: expect.stringContaining('JetStream') as string });
  });

  test('a stream is made, brought up to date where that can be done, and refused where it came out different', async () => {
    const { url } = await startNats();
    const connection = await natsClient(url);
    onTestFinished(() => connection.close());
    const manager = await jetstreamManager(connection);
    const wanted = { name: 'log', subjects: ['log.*'], storage: 'file' as never, max_age: 60e9, num_replicas: 1 };
    await ensureStream(manager, wanted);
    expect((await ensureStream(manager, { ...wanted, max_age: 120e9 })).config.max_age).toBe(120e9);
    await manager.streams.add({ name: 'other', subjects: ['other.*'], storage: 'memory' });
    const error = await ensureStream(manager, { ...wanted, name: 'other', subjects: ['other.*'] }).catch(
      (thrown: unknown) => natsError(thrown, [url]),
    );
    expect(error).toMatchObject({ code: expect.stringMatching(/^NATS_STREAM_/) as string });
    const tooMany = await ensureStream(manager, {
      ...wanted,
      name: 'three',
      subjects: ['three.*'],
      num_replicas: 3,
    }).catch((thrown: unknown) => natsError(thrown, [url]));
    expect(tooMany).toMatchObject({
      code: 'NATS_STREAM_REFUSED',
      message: expect.stringContaining('has not so many servers for the replicas') as string,
    });
  });

  test('an option that an old server does not know is noticed', () => {
    const wanted = { name: 'log', subjects: ['log.*'], compression: 's2' as never };
    expect(differencesOf(wanted, { name: 'log', subjects: ['log.*'] })).toEqual([
      'compression is unknown to the server, wanted "s2"',
    ]);
  });
});
