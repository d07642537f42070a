/** Nodes that know of each other over a real nats-server: silence, goodbyes, restarts, doubles, and NATS away. */
import { rmSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { subjectsOf } from '../src/bus/subjects.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { explain } from '../src/worlds/explain.ts';
import { clusterOf, nodeOf, sees, startMember, startNats } from './memberHelpers.ts';
import type { Member } from './memberHelpers.ts';
import { natsClient } from './natsHelpers.ts';
import { get, understudy, within } from './nodeHelpers.ts';
import { has } from './packages.ts';

const explained = ({ folder, name }: Member, actor: string): string[] => {
  const reader = new JournalReader(`${folder}/${name}.db`);
  try {
    const { headline, sentences } = explain(reader, actor);
    return [headline, ...sentences.map(({ text }) => text)];
  } finally {
    reader.close();
  }
};

const healthOf = async ({ node }: Member): Promise<{ status: string; problems: string[] }> =>
  JSON.parse((await get(`${node.api}/healthz`)).body) as { status: string; problems: string[] };

describe.skipIf(!has('nats-server'))('nodes of one cluster', () => {
  test('each sees the other at once, with what it runs, and one that stops in order is gone at once', async () => {
    const { url } = await startNats();
    const one = await startMember('lb1', { servers: [url] });
    const two = await startMember('lb2', { servers: [url] });
    const state = await sees(one, 'lb2', 'alive');
    expect(nodeOf(state, 'lb2')).toMatchObject({ self: false, epoch: 1, pools: { web: { usable: 1, of: 1 } } });
    expect(nodeOf(state, 'lb1')).toMatchObject({ self: true, clock: null });
    expect(Math.abs(nodeOf(state, 'lb2')!.clock!.behindMs)).toBeLessThan(1_000);
    expect(clusterOf(state).bus).toMatchObject({ state: 'connected', failure: null });
    await sees(two, 'lb1', 'alive');
    await two.node.end();
    const left = await sees(one, 'lb2', 'gone');
    expect(nodeOf(left, 'lb2')!.reason).toBe('it has left in order');
    expect(left.node.notices).toContain('node lb2 has left in order');
    expect((await healthOf(one)).problems.join()).not.toContain('lb2');
    await one.node.end();
    const sentences = explained(one, 'member/lb2');
    expect(sentences[0]).toMatch(/^Node lb2 is GONE since /);
    expect(sentences.slice(1)).toEqual([
      expect.stringMatching(/^It was heard for the first time since this node started: version \S+, start 1, journal /),
      'It said goodbye: it has left in order. It is GONE.',
    ]);
    const verified = await understudy(['verify', `${one.folder}/lb1.db`]);
    expect(verified.status).toBe(0);
  });

  test('one that stands still is suspect, then gone, and alive again when it goes on', async () => {
    const { url } = await startNats();
    const [one, two] = await Promise.all(['lb1', 'lb2'].map((name) => startMember(name, { servers: [url] })));
    await Promise.all([sees(one!, 'lb2', 'alive'), sees(two!, 'lb1', 'alive')]);
    two!.node.child.kill('SIGSTOP');
    const suspect = await sees(one!, 'lb2', 'suspect');
    expect(nodeOf(suspect, 'lb2')!.reason).toMatch(/^nothing was heard of it for [34]\.\d s$/);
    const gone = await sees(one!, 'lb2', 'gone');
    expect(nodeOf(gone, 'lb2')!.reason).toMatch(/^nothing was heard of it for 1[01]\.\d s$/);
    const { status, problems } = await healthOf(one!);
    expect(status).toBe('degraded');
    expect(problems.join()).toMatch(/node lb2 is gone: nothing was heard of it for 1\d\.\d s/);
    two!.node.child.kill('SIGCONT');
    await sees(one!, 'lb2', 'alive');
    // It had slept itself: that it heard nothing meanwhile is no reason to doubt the other one.
    await two!.node.state();
    await two!.node.end();
    expect(explained(two!, 'member/lb1').join('\n')).not.toMatch(/GONE|SUSPECT/);
    await one!.node.end();
    const sentences = explained(one!, 'member/lb2');
    expect(sentences).toContainEqual(expect.stringMatching(/^Nothing was heard of it for 3\.\d s\. It is SUSPECT\.$/));
    expect(sentences).toContainEqual(expect.stringMatching(/^Nothing was heard of it for 10\.\d s\. It is GONE\.$/));
    expect(sentences).toContainEqual(expect.stringMatching(/^It was heard again: .* It is ALIVE\.$/));
  });

  test('another start is an event of its own, and a journal that began anew takes the name over', async () => {
    const { url } = await startNats();
    const one = await startMember('lb1', { servers: [url] });
    let two = await startMember('lb2', { servers: [url] });
    await sees(one, 'lb2', 'alive');
    await two.node.end('SIGKILL');
    two = await startMember('lb2', { servers: [url], folder: two.folder });
    await one.node.until('its second start', (state) => nodeOf(state, 'lb2')?.epoch === 2);
    await two.node.end('SIGKILL');
    for (const end of ['', '-wal', '-shm']) rmSync(`${two.folder}/lb2.db${end}`, { force: true });
    two = await startMember('lb2', { servers: [url], folder: two.folder });
    const anew = await one.node.until('the new journal', (state) => nodeOf(state, 'lb2')?.epoch === 1);
    expect(nodeOf(anew, 'lb2')!.state).toBe('alive');
    const { problems } = await healthOf(one);
    expect(problems.join()).not.toContain('two nodes');
    await one.node.end();
    expect(explained(one, 'member/lb2')).toContainEqual(
      expect.stringMatching(/^(It has started anew|It was heard again): version \S+, start 2, journal /),
    );
  });

  test('two nodes of one name are told of by both and by others, until one of them ends', async () => {
    const { url } = await startNats();
    const watcher = await startMember('lb3', { servers: [url] });
    const one = await startMember('lb1', { servers: [url] });
    await sees(watcher, 'lb1', 'alive');
    const double = await startMember('lb1', { servers: [url] });
    const tells = async (member: Member) => (await healthOf(member)).problems.join();
    for (const member of [one, double])
      await member.node.until('the double', ({ node }) =>
        node.problems.join().includes('two nodes call themselves lb1'),
      );
    // No transition of its own tells of it to others: looked at until it shows.
    await within(
      'the watcher tells',
      (async () => {
        while (!(await tells(watcher)).includes('two nodes call themselves lb1'));
      })(),
    );
    expect(nodeOf(await watcher.node.state(), 'lb1')!.state).toBe('alive');
    await double.node.end();
    await one.node.until('it is alone', ({ node }) => !node.problems.join().includes('two nodes'));
    await within(
      'the watcher tells no more',
      (async () => {
        while ((await tells(watcher)).includes('two nodes'));
      })(),
    );
    expect(nodeOf(await watcher.node.state(), 'lb1')!.state).toBe('alive');
  });

  test('NATS away: the others are not heard and nobody takes that for their death; then all is as before', async () => {
    const nats = await startNats();
    const [one, two] = await Promise.all(['lb1', 'lb2'].map((name) => startMember(name, { servers: [nats.url] })));
    await Promise.all([sees(one!, 'lb2', 'alive'), sees(two!, 'lb1', 'alive')]);
    await nats.stop();
    const gone = await sees(one!, 'lb2', 'gone');
    expect(nodeOf(gone, 'lb2')!.reason).toMatch(/^NATS is away \(.*\): that tells nothing of the node$/);
    expect(clusterOf(gone).bus).toMatchObject({ state: 'away', failure: { code: 'NATS_UNREACHABLE' } });
    const { status, problems } = await healthOf(one!);
    expect(status).toBe('degraded');
    expect(problems.join()).toMatch(/NATS is away \(NATS_UNREACHABLE: /);
    expect(problems.join()).not.toContain('lb2');
    await nats.again();
    await Promise.all([sees(one!, 'lb2', 'alive'), sees(two!, 'lb1', 'alive')]);
    expect((await one!.node.state()).node.problems.join()).not.toContain('NATS');
  });

  test('any node answers for another one; a stranger is named, and a question nobody knows is refused', async () => {
    const { url } = await startNats();
    const one = await startMember('lb1', { servers: [url] });
    const two = await startMember('lb2', { servers: [url] });
    await sees(one, 'lb2', 'alive');
    const { status, stdout } = await understudy(['status', '--node', 'lb2', '--json', '--api', one.node.api]);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ node: { name: 'lb2', tokenFile: null, pid: two.node.child.pid } });
    const text = (await understudy(['status', '--api', one.node.api])).stdout;
    expect(text).toMatch(/^NATS: connected to \S+ \(\S+\) for .*, version \d/m);
    expect(text).toMatch(/^lb1 \(this node\) +alive /m);
    expect(text).toMatch(/^lb2 +alive +.* web 1\/1 +/m);
    const stranger = await understudy(['status', '--node', 'lb9', '--api', one.node.api]);
    expect(stranger.status).toBe(3);
    expect(stranger.stderr).toContain('node lb9 doesn’t answer'.replace('’', "'"));
    const client = await natsClient(url);
    try {
      const { ask, alive } = subjectsOf('shop');
      const answer = await client.request(ask('lb1'), JSON.stringify({ type: 'fortune' }), { timeout: 3_000 });
      expect(answer.json()).toMatchObject({
        ok: false,
        code: 'USAGE',
        message: expect.stringContaining('it answers '),
      });
      client.publish(alive('lb7'), 'no heartbeat');
      client.publish(
        alive('lb7'),
        JSON.stringify({ node: 'lb8', version: '1', journal: 'x', epoch: 1, seq: 1, timeUs: 1 }),
      );
      await client.flush();
      await within(
        'both are counted',
        (async () => {
          while (
            !(await get(`${one.node.api}/metrics?only=node`)).body.includes('understudy_member_malformed_total 2')
          );
        })(),
      );
    } finally {
      await client.close();
    }
    expect(clusterOf(await one.node.state()).nodes.map(({ name }) => name)).toEqual(['lb1', 'lb2']);
    const { body } = await get(`${one.node.api}/metrics?only=node`);
    expect(body).toContain('understudy_bus_connected 1');
    expect(body).toContain('understudy_member_state{node="lb2",state="alive"} 1');
  });
});
