/** Every record of the journal is in the stream once, in order and without a hole, whatever happens on the way. */
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import { headers } from '@nats-io/transport-node';
import { expect, onTestFinished, test } from 'vitest';
import { encodeJson } from '../src/bus/bus.ts';
import { ClusterLog } from '../src/bus/clusterLog.ts';
import { headersOf, headOf, LOG_FORMAT } from '../src/bus/logFormat.ts';
import type { LogHead } from '../src/bus/logFormat.ts';
import { beginning, markAt } from '../src/bus/logPosition.ts';
import { subjectsOf } from '../src/bus/subjects.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { CLUSTER, natsConfig, readLog, Relay, ShippingService, wholeLog, WrittenJournal } from './logHelpers.ts';
import { natsClient, NatsCluster, NatsServer } from './natsHelpers.ts';
import type { NatsOptions } from './natsHelpers.ts';
import { tempFolder, within } from './nodeHelpers.ts';

const { logStream, log: subjectOf, alive } = subjectsOf(CLUSTER);

const startNats = async (options: NatsOptions = {}): Promise<NatsServer> => {
  const server = await NatsServer.start(options);
  onTestFinished(() => server.end());
  return server;
};

const clientOf = async (server: NatsServer) => {
  const client = await natsClient(server.url);
  onTestFinished(() => client.close());
  return client;
};

const kindsIn = async (server: NatsServer): Promise<string[]> => {
  const client = await clientOf(server);
  const { streams } = await jetstreamManager(client);
  const { state } = await streams.info(logStream);
  const messages = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq++)
    messages.push(await streams.getMessage(logStream, { seq }));
  return messages.map((message) => {
    const head = headOf(message?.header);
    return head ? `${head.kind} ${head.first}-${head.last}` : 'foreign';
  });
};

test('what the journal has is shipped, and what it gets is shipped after it', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(5_000);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  expect(await service.told('located')).toEqual({ type: 'located', behind: 5_000 });
  await service.told('caughtUp');
  journal.write(3);
  service.written();
  await service.shipped(5_003);
  expect(await wholeLog(server.url, 5_003)).toMatchObject({ node: 'lb1', rows: 5_003, firstSeq: 1, gaps: [] });
});

test('it looks into the journal by itself when nobody says that something was written', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(1);
  journal.write(1);
  await service.shipped(2);
  expect((await wholeLog(server.url, 2)).rows).toBe(2);
});

test('a service that knows nothing goes on where the stream ends', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(100);
  const first = await ShippingService.start(journal, natsConfig([server.url]));
  await first.shipped(100);
  await first.close();
  await first.end();
  journal.write(50);
  const second = await ShippingService.start(journal, natsConfig([server.url]));
  expect(await second.told('located')).toEqual({ type: 'located', behind: 50 });
  await second.shipped(150);
  expect((await wholeLog(server.url, 150)).rows).toBe(150);
});

test('a record larger than a message goes in pieces, and when it was cut off it begins again', async () => {
  const server = await startNats({ config: 'max_payload: 64KB' });
  const journal = new WrittenJournal();
  journal.write(2);
  journal.write(1, { payload: 'x'.repeat(1_000_000) });
  const first = await ShippingService.start(journal, natsConfig([server.url]));
  // Ends as soon as something is there; what it had under way arrives or not, and what is there of it is no trouble.
  await first.told('located');
  await first.end();
  const second = await ShippingService.start(journal, natsConfig([server.url]));
  await second.told('caughtUp');
  journal.write(2);
  second.written();
  await second.shipped(5);
  const lineage = await wholeLog(server.url, 5);
  expect(lineage.rows).toBe(5);
  const reader = new JournalReader(lineage.path);
  expect(reader.row(3)!.body.length).toBeGreaterThan(1_000_000);
  reader.close();
});

test('a server that is killed and comes back has each record once', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(100);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(100);
  for (let round = 1; round <= 3; round++) {
    journal.write(20_000);
    service.written();
    await server.stop('SIGKILL');
    journal.write(10);
    await server.again();
  }
  await service.shipped(journal.lastSeq);
  expect((await wholeLog(server.url, journal.lastSeq)).rows).toBe(journal.lastSeq);
});

test('a server that stands still for longer than an answer may take has each record once', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(10);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(10);
  server.signal('SIGSTOP');
  journal.write(10);
  service.written();
  // Published into a socket that nobody reads: its acknowledgement comes after nobody waits for it any more.
  await new Promise((done) => setTimeout(done, 5_500));
  journal.write(10);
  server.signal('SIGCONT');
  await service.shipped(30);
  expect((await wholeLog(server.url, 30)).rows).toBe(30);
});

test('a message whose acknowledgement was lost is found before the mark that is sent behind it, and not sent again', async () => {
  const server = await startNats();
  const relay = await Relay.start(server.port);
  const journal = new WrittenJournal();
  journal.write(7);
  const service = await ShippingService.start(journal, natsConfig([relay.url]));
  await service.shipped(7);
  for (let round = 1; round <= 3; round++) {
    const sent = relay.loseAnswers();
    journal.write(5);
    service.written();
    await sent;
    relay.cut();
    await service.shipped(journal.lastSeq);
  }
  journal.write(1);
  await service.shipped(23);
  expect((await wholeLog(server.url, 23)).rows).toBe(23);
  expect(await kindsIn(server)).toEqual([
    'mark 0-0',
    'rows 1-7',
    'rows 8-12',
    'mark 12-12',
    'rows 13-17',
    'mark 17-17',
    'rows 18-22',
    'mark 22-22',
    'rows 23-23',
  ]);
});

test('what was under way when a mark was sent counts where it stands before the mark, and is refused after it', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(7);
  const first = await ShippingService.start(journal, natsConfig([server.url]));
  await first.shipped(7);
  await first.close();
  await first.end();
  journal.write(8);
  const client = await clientOf(server);
  const stream = jetstream(client);
  const head = { format: LOG_FORMAT, journal: journal.identity, epoch: 1, check: null, checkpoint: null };
  const whole = { piece: { from: 0, total: 1 }, after: null };
  const put = (own: LogHead, lastSubjectSequence: number) =>
    stream.publish(subjectOf('lb1'), own.kind === 'mark' ? '' : '.', {
      headers: headersOf(own, 0),
      expect: { lastSubjectSequence },
    });
  // The first message is a mark too.
  const known = 2;
  const { seq: late } = await put({ ...head, ...whole, kind: 'rows', first: 8, last: 12 }, known);
  await put(markAt(journal.identity, { ...beginning(known), through: 7 }), late);
  await expect(put({ ...head, ...whole, kind: 'rows', first: 8, last: 12 }, known)).rejects.toThrow(/last sequence/);
  const second = await ShippingService.start(journal, natsConfig([server.url]));
  expect(await second.told('located')).toEqual({ type: 'located', behind: 3 });
});

test('a leader that is killed among three servers loses nothing and doubles nothing', async () => {
  const cluster = await NatsCluster.start();
  onTestFinished(() => cluster.end());
  const journal = new WrittenJournal();
  journal.write(100);
  const service = await ShippingService.start(journal, natsConfig(cluster.urls, { replicas: 3 }));
  await service.shipped(100);
  const client = await natsClient(...cluster.urls);
  const { cluster: raft } = await (await jetstreamManager(client)).streams.info(logStream);
  await client.close();
  const leader = cluster.servers[Number(raft!.leader!.slice(1)) - 1]!;
  journal.write(30_000);
  service.written();
  await leader.stop('SIGKILL');
  journal.write(10);
  await service.shipped(journal.lastSeq);
  const other = cluster.servers.find((server) => server !== leader)!;
  const { rows } = await wholeLog(other.url, journal.lastSeq);
  expect(rows).toBe(journal.lastSeq);
});

test('whoever follows the log sees all that comes, whichever of three servers is killed', async () => {
  const cluster = await NatsCluster.start();
  onTestFinished(() => cluster.end());
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig(cluster.urls, { replicas: 3 }));
  await service.shipped(1);
  const log = await ClusterLog.open({ servers: cluster.urls }, CLUSTER, tempFolder());
  await log.read();
  let wake = () => {};
  const following = log.follow(
    {},
    () => wake(),
    () => {},
  );
  const seen = (seq: number): Promise<void> =>
    within(
      `record ${seq} is seen`,
      new Promise((done) => {
        wake = () => {
          if (log.lineages[0]!.lastSeq === seq) done();
        };
        wake();
      }),
      60_000,
    );
  for (const server of cluster.servers) {
    await server.stop('SIGKILL');
    journal.write(1);
    service.written();
    await seen(journal.lastSeq);
    await server.again();
    journal.write(1);
    service.written();
    await seen(journal.lastSeq);
  }
  await log.close();
  await following;
  expect(journal.lastSeq).toBe(7);
});

test('a stream that was deleted is made again, and gets the journal from its beginning', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(3_000);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(3_000);
  const { streams } = await jetstreamManager(await clientOf(server));
  await streams.delete(logStream);
  journal.write(5);
  service.written();
  await service.shipped(3_005);
  const { rows, firstSeq } = await wholeLog(server.url, 3_005);
  expect({ rows, firstSeq }).toEqual({ rows: 3_005, firstSeq: 1 });
});

test('what retention took before it could be shipped is a gap that says so, with a checkpoint behind it', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(10);
  const first = await ShippingService.start(journal, natsConfig([server.url]));
  await first.shipped(10);
  await first.end();
  journal.write(90);
  journal.checkpoint();
  journal.purge();
  journal.write(5);
  const second = await ShippingService.start(journal, natsConfig([server.url]));
  await second.shipped(105);
  expect(await kindsIn(server)).toEqual([
    'mark 0-0',
    'rows 1-10',
    'mark 10-10',
    'gap 11-100',
    'checkpoint 100-100',
    'rows 101-105',
  ]);
  const { gaps, path } = await wholeLog(server.url, 105);
  expect(gaps).toEqual([{ from: 11, through: 100 }]);
  const reader = new JournalReader(path);
  expect(reader.row(11)).toMatchObject({ type: 'journal.gap', origin: 'node' });
  reader.close();
});

test('a journal that begins with a checkpoint begins with it in the stream', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(90);
  journal.checkpoint();
  journal.purge();
  journal.write(5);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(95);
  expect(await kindsIn(server)).toEqual(['mark 0-0', 'checkpoint 90-90', 'rows 91-95']);
  expect(await wholeLog(server.url, 95)).toMatchObject({ firstSeq: 91, gaps: [] });
});

test('a gap of the journal’s own is shipped as it is, and the checkpoint after it', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(3);
  journal.gap(10);
  journal.checkpoint();
  journal.write(2);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(15);
  expect(await kindsIn(server)).toEqual(['mark 0-0', 'rows 1-13', 'checkpoint 13-13', 'rows 14-15']);
  expect((await wholeLog(server.url, 15)).gaps).toEqual([{ from: 4, through: 13 }]);
});

test('checkpoints that are large beside the rows between them are left out, but for the first', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  for (const upTo of [10, 20, 30]) {
    journal.write(10);
    journal.checkpoint(100_000);
    service.written();
    await service.shipped(upTo);
  }
  journal.write(1);
  await service.shipped(31);
  expect((await kindsIn(server)).filter((kind) => kind.startsWith('checkpoint'))).toEqual(['checkpoint 10-10']);
});

test('a node that leaves ships what is left', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.told('caughtUp');
  journal.write(10_000);
  await service.close();
  expect((await wholeLog(server.url, 10_000)).rows).toBe(10_000);
});

test('a journal that was put back from a copy is refused: its seqs have other records in the stream', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(10);
  const first = await ShippingService.start(journal, natsConfig([server.url]));
  await first.shipped(10);
  await first.end();
  journal.rewind(4);
  const second = await ShippingService.start(journal, natsConfig([server.url]));
  expect(await second.told('refused')).toMatchObject({ code: 'JOURNAL_FORKED' });
  journal.write(20, { state: 'down,ready,warm' });
  const from = second.events.length;
  second.ship();
  expect(await second.told('refused', from)).toMatchObject({ code: 'JOURNAL_FORKED' });
});

test('another journal under the same name is fenced off while the first node is alive, and begins when it is gone', async () => {
  const server = await startNats();
  const one = new WrittenJournal();
  one.write(10);
  const first = await ShippingService.start(one, natsConfig([server.url]));
  await first.shipped(10);
  const client = await clientOf(server);
  const heartbeat = () => client.publish(alive('lb1'), encodeJson({ journal: one.identity }));
  const beating = setInterval(heartbeat, 500);
  onTestFinished(() => clearInterval(beating));
  const two = new WrittenJournal();
  two.write(20);
  const second = await ShippingService.start(two, natsConfig([server.url]));
  expect(await second.told('fenced')).toEqual({ type: 'fenced', journal: one.identity });
  one.write(5);
  await first.shipped(15);
  clearInterval(beating);
  await first.end();
  const looking = setInterval(() => second.ship(), 1_000);
  onTestFinished(() => clearInterval(looking));
  await second.shipped(20);
  const lineages = await readLog(server.url);
  expect(lineages.map(({ journal, lastSeq, problems }) => ({ journal, lastSeq, problems }))).toEqual([
    { journal: one.identity, lastSeq: 15, problems: [] },
    { journal: two.identity, lastSeq: 20, problems: [] },
  ]);
});

test('a node whose place was taken while it ships is fenced, and later goes on after its own last record', async () => {
  const server = await startNats();
  const one = new WrittenJournal();
  one.write(10);
  const first = await ShippingService.start(one, natsConfig([server.url]));
  await first.shipped(10);
  const two = new WrittenJournal();
  two.write(3);
  // Nobody is heard, as the first one of these services sends no heartbeats.
  const second = await ShippingService.start(two, natsConfig([server.url]));
  await second.shipped(3);
  one.write(1);
  first.written();
  expect(await first.told('fenced')).toEqual({ type: 'fenced', journal: two.identity });
  await second.end();
  await first.end();
  // Started again it knows nothing, and finds its own last record before the other's.
  const third = await ShippingService.start(one, natsConfig([server.url]));
  await third.shipped(11);
  const lineages = await readLog(server.url);
  expect(lineages.map(({ lastSeq, problems }) => ({ lastSeq, problems }))).toEqual([
    { lastSeq: 3, problems: [] },
    { lastSeq: 11, problems: [] },
  ]);
});

test('a server without JetStream is told as that', async () => {
  const server = await startNats({ jetstream: false });
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  expect(await service.told('refused')).toMatchObject({ code: 'NATS_NO_JETSTREAM' });
});

test('a stream that can’t be as it should is told, and shipped to as soon as it can', async () => {
  const server = await startNats();
  const { streams } = await jetstreamManager(await clientOf(server));
  await streams.add({ name: logStream, subjects: [subjectsOf(CLUSTER).logs], storage: 'memory' });
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  expect((await service.told('refused')).code).toMatch(/^NATS_STREAM_(DIFFERS|REFUSED)$/);
  await streams.delete(logStream);
  service.ship();
  await service.shipped(1);
});

test('a server that takes only tiny messages is told as that', async () => {
  const server = await startNats({ config: 'max_payload: 4KB' });
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  const { code, message } = await service.told('refused');
  expect([code, message]).toEqual(['NATS_STREAM_REFUSED', expect.stringContaining('max_payload')]);
});

test('more replicas than servers are refused with the reason', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  const service = await ShippingService.start(journal, natsConfig([server.url], { replicas: 3 }));
  expect(await service.told('refused')).toMatchObject({ code: 'NATS_STREAM_REFUSED' });
});

test('a message of somebody else’s on the subject stops the courier, and is told', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(1);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(1);
  const client = await clientOf(server);
  await client.request(subjectOf('lb1'), 'hello', { timeout: 5_000, headers: headers() });
  journal.write(1);
  service.written();
  expect(await service.told('refused')).toMatchObject({ code: 'NATS_STREAM_REFUSED' });
});
