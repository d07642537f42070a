/** Another node by its heartbeats: silence, deafness, goodbyes, restarts, and two nodes of one name. */
import { describe, expect, test } from 'vitest';
import { clusterMemberHands } from '../actors/clusterMember.ts';
import type { ActorRef } from '../actors/system.ts';
import { clusterMember } from '../machines/clusterMember.ts';
import type { MemberContext, MemberEvent, MemberIdentity } from '../machines/clusterMember.ts';
import { ClockGap } from '../src/cluster/clockGap.ts';
import { readHeartbeat } from '../src/cluster/heartbeat.ts';
import { delayOf, Stepper, typesOf } from './stepper.ts';

const FIRST: MemberIdentity = { version: '1.2.0', epoch: 3, journal: 'a1' };
const OTHER: MemberIdentity = { version: '1.2.0', epoch: 1, journal: 'b2' };

type Member = Stepper<MemberEvent, MemberContext>;

const fresh = (): Member =>
  new Stepper(clusterMember, {
    node: 'lb2',
    identity: FIRST,
    settings: { suspectAfterMs: 3_000, goneAfterMs: 10_000 },
  });

const beat = (identity: MemberIdentity = FIRST): MemberEvent => ({ type: 'heartbeat', ...identity });
const goodbye = (identity: MemberIdentity = FIRST): MemberEvent => ({ type: 'member.left', ...identity });
const silence: MemberEvent = { type: 'silence.elapsed' };
type Looked = Extract<MemberEvent, { type: 'looked' }>;
const looked = (rest: Partial<Looked> = {}): MemberEvent => ({
  type: 'looked',
  silentMs: 3_000,
  lateMs: 0,
  hearingMs: 60_000,
  detail: '',
  ...rest,
});
const away = looked({ hearingMs: null, detail: 'the connection is lost' });

const suspect = (): Member => {
  const it = fresh();
  it.sendAll(silence, looked());
  expect(it.state).toBe('suspect.waiting');
  return it;
};
const gone = (): Member => {
  const it = suspect();
  it.sendAll(silence, looked({ silentMs: 10_000 }));
  expect(it.state).toBe('gone');
  return it;
};

describe('heartbeats', () => {
  test('a node is alive from the first one on, and each gives it the whole time again', () => {
    const it = fresh();
    expect(it.state).toBe('alive.listening');
    expect(delayOf(it.started, 'silence')).toBe(3_000);
    expect(delayOf(it.send(beat()), 'silence')).toBe(3_000);
  });

  test('one that says nothing new is steady: the same context, in a routine', () => {
    const it = fresh();
    const before = it.snapshot;
    it.send(beat());
    expect(it.snapshot.context).toBe(before.context);
    expect(it.snapshot.hasTag('routine')).toBe(true);
  });

  test('another start of the same journal is news, and the node stays alive', () => {
    const it = fresh();
    it.send(beat({ ...FIRST, epoch: 4, version: '1.3.0' }));
    expect(it.state).toBe('alive.listening');
    expect(it.context).toMatchObject({ identity: { epoch: 4, version: '1.3.0' }, rival: null });
    expect(it.context.reason).toEqual({ code: 'restarted' });
  });
});

describe('silence', () => {
  test('it looks before it suspects, and a heartbeat that had only waited ends the doubt', () => {
    const it = fresh();
    expect(typesOf(it.send(silence))).toContain('look');
    expect(it.state).toBe('alive.looking');
    it.send(beat());
    expect(it.state).toBe('alive.listening');
    // Of the look that the heartbeat has ended.
    it.send(looked());
    expect(it.state).toBe('alive.listening');
  });

  test('after 3 s it is suspect, and after 10 s gone, with the evidence', () => {
    const it = fresh();
    it.send(silence);
    const effects = it.send(looked({ silentMs: 3_004, lateMs: 2 }));
    expect(it.state).toBe('suspect.waiting');
    expect(it.context.reason).toEqual({ code: 'silent', silentMs: 3_004, lateMs: 2 });
    expect(delayOf(effects, 'silence')).toBe(7_000);
    expect(typesOf(it.send(silence))).toContain('look');
    it.send(looked({ silentMs: 10_005 }));
    expect(it.state).toBe('gone');
    expect(it.context.reason).toMatchObject({ code: 'silent', silentMs: 10_005 });
  });

  test('one heartbeat brings it back, suspect or gone, also under a new journal', () => {
    const it = suspect();
    it.send(beat());
    expect(it.state).toBe('alive.listening');
    const other = gone();
    other.send(beat(OTHER));
    expect(other.state).toBe('alive.listening');
    expect(other.context).toMatchObject({ identity: OTHER, rival: null, reason: { code: 'heard' } });
  });

  test('a late loop gives it the time once more, but not twice', () => {
    const it = fresh();
    it.send(silence);
    expect(delayOf(it.send(looked({ lateMs: 4_000 })), 'silence')).toBe(3_000);
    expect(it.state).toBe('alive.listening');
    it.sendAll(silence, looked({ lateMs: 4_000 }));
    expect(it.state).toBe('suspect.waiting');
    expect(it.context.reason.code).toBe('silent');
  });

  test('a loop that was late between suspect and gone gives it the time too', () => {
    const it = suspect();
    it.send(silence);
    expect(delayOf(it.send(looked({ lateMs: 60_000 })), 'silence')).toBe(3_000);
    expect(it.state).toBe('suspect.waiting');
    it.sendAll(silence, looked());
    expect(it.state).toBe('gone');
  });
});

describe('a bus that is away', () => {
  test('suspect and gone come by the same times, and the reason is not the node', () => {
    const it = fresh();
    it.sendAll(silence, away);
    expect(it.state).toBe('suspect.waiting');
    expect(it.context.reason).toMatchObject({ code: 'busAway', detail: 'the connection is lost' });
    it.sendAll(silence, away);
    expect(it.state).toBe('gone');
    expect(it.context.reason.code).toBe('busAway');
  });

  test('one that is only just back gives it the time to be heard', () => {
    const it = fresh();
    it.send(silence);
    expect(delayOf(it.send(looked({ hearingMs: 200 })), 'silence')).toBe(3_000);
    expect(it.state).toBe('alive.listening');
  });

  test('when it is back and the node stays silent, the silence is its own', () => {
    const it = fresh();
    it.sendAll(silence, away, silence, away);
    expect(delayOf(it.send({ type: 'bus.joined' }), 'silence')).toBe(3_000);
    it.send(silence);
    expect(it.state).toBe('gone');
    expect(it.context.reason).toEqual({ code: 'silent' });
  });

  test('a suspect gets its whole time again when the bus is back', () => {
    const it = fresh();
    it.sendAll(silence, away);
    expect(delayOf(it.send({ type: 'bus.joined' }), 'silence')).toBe(7_000);
  });

  test('what was gone before is told nothing new by it', () => {
    const it = gone();
    expect(it.send({ type: 'bus.joined' })).toEqual([]);
  });
});

describe('goodbyes', () => {
  test('a node that says goodbye is gone at once, and has no timer left', () => {
    const it = fresh();
    const effects = it.send(goodbye());
    expect(it.state).toBe('gone');
    expect(it.context.reason).toEqual({ code: 'left' });
    expect(effects).toContainEqual({ type: 'cancel', params: { id: 'silence' } });
  });

  test('a suspect may say it too', () => {
    const it = suspect();
    it.send(goodbye());
    expect(it.context.reason).toEqual({ code: 'left' });
  });
});

describe('two nodes of one name', () => {
  test('another journal under the name of a live node is remembered, and is not that node', () => {
    const it = fresh();
    const effects = it.send(beat(OTHER));
    expect(it.context).toMatchObject({ identity: FIRST, rival: OTHER });
    expect(delayOf(effects, 'silence')).toBeNull();
    expect(delayOf(effects, 'rivalSilence')).toBe(3_000);
  });

  test('an earlier start of the same journal, as of a copied machine, is another node too', () => {
    const it = fresh();
    it.send(beat({ ...FIRST, epoch: 2 }));
    expect(it.context.rival).toMatchObject({ epoch: 2 });
  });

  test('both of them, again and again, are steady', () => {
    const it = fresh();
    it.send(beat(OTHER));
    const { context } = it;
    it.sendAll(beat(), beat(OTHER), beat(), beat(OTHER));
    expect(it.context).toBe(context);
  });

  test('when the other one is not heard any more it is forgotten', () => {
    const it = fresh();
    it.sendAll(beat(OTHER), { type: 'rival.silent' });
    expect(it.context).toMatchObject({ identity: FIRST, rival: null });
  });

  test('when the known one falls silent the name is the other one’s: a journal that began anew', () => {
    const it = fresh();
    it.sendAll(beat(OTHER), silence, looked());
    expect(it.state).toBe('alive.listening');
    expect(it.context).toMatchObject({ identity: OTHER, rival: null, reason: { code: 'replaced' } });
  });

  test('the goodbye of one leaves the other', () => {
    const rivalLeaves = fresh();
    rivalLeaves.sendAll(beat(OTHER), goodbye(OTHER));
    expect(rivalLeaves.context).toMatchObject({ identity: FIRST, rival: null });
    const knownLeaves = fresh();
    knownLeaves.sendAll(beat(OTHER), goodbye());
    expect(knownLeaves.state).toBe('alive.listening');
    expect(knownLeaves.context).toMatchObject({ identity: OTHER, rival: null });
  });

  test('the goodbye of one that was not known is none of ours', () => {
    const it = fresh();
    expect(it.send(goodbye(OTHER))).toEqual([]);
    expect(it.state).toBe('alive.listening');
  });
});

describe('hands', () => {
  test('the lateness is that of the timer that asked, and the answer comes when the look has ended', () => {
    const sent: unknown[] = [];
    let lateMs = 7;
    let answer: (look: { silentMs: number; hearingMs: number | null; detail: string }) => void = () => {};
    const hands = clusterMemberHands(
      (_, done) => (answer = done),
      () => lateMs,
    );
    const actor: ActorRef = { id: 'member/lb2', send: (event) => sent.push(event) };
    hands['look']!(undefined as never, actor);
    lateMs = 0;
    expect(sent).toEqual([]);
    answer({ silentMs: 3_001, hearingMs: 5_000, detail: '' });
    expect(sent).toEqual([{ type: 'looked', lateMs: 7, silentMs: 3_001, hearingMs: 5_000, detail: '' }]);
  });
});

describe('what comes in as a heartbeat', () => {
  const bytes = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
  const least = { node: 'lb2', version: '9.0.0', journal: 'a1', epoch: 1, seq: 7, timeUs: 1 };

  test('who it is has to be there; what else it tells may be told otherwise by another version', () => {
    expect(readHeartbeat(bytes({ ...least, pools: 'many', somethingNew: 1 }))).toMatchObject({
      node: 'lb2',
      pools: {},
    });
    for (const key of Object.keys(least)) expect(readHeartbeat(bytes({ ...least, [key]: undefined })), key).toBeNull();
  });

  test.each([
    ['not JSON', new Uint8Array([0xff, 0x00])],
    ['null', bytes(null)],
    ['a list', bytes([least])],
  ])('%s is none', (_, data) => {
    expect(readHeartbeat(data)).toBeNull();
  });
});

describe('the gap between two clocks', () => {
  test('the least delayed message tells the most, and old ones are forgotten', () => {
    const gap = new ClockGap();
    gap.observe(900);
    gap.observe(250);
    gap.observe(4_000);
    expect(gap.behindUs).toBe(250);
    for (let count = 0; count < 30; count++) gap.observe(5_000);
    expect(gap.behindUs).toBe(5_000);
  });
});
