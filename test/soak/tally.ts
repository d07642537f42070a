/** What became of everything that clients asked for. Plain data: it goes from the clients' processes to the soak's own. */

/** A server that had begun to answer broke off. `server` is its run, as told by the answer; '' when it was not told. */
export type CutOff = { what: string; server: string; atMs: number };
/** Not idempotent, and without an answer: nobody may ask again in the client's place. */
export type Lost = { what: string; startedMs: number; atMs: number; why: string };

export type Tally = {
  /** By what was done: `GET`, `WebSocket message`. */
  done: Record<string, number>;
  bytes: number;
  cutOffs: CutOff[];
  lost: Lost[];
  violationCount: number;
  /** The first of them. */
  violations: string[];
};

/** Enough to see what is wrong. */
const MAX_VIOLATIONS = 50;

export const newTally = (): Tally => ({
  done: {},
  bytes: 0,
  cutOffs: [],
  lost: [],
  violationCount: 0,
  violations: [],
});

export const countDone = (tally: Tally, what: string, bytes: number): void => {
  tally.done[what] = (tally.done[what] ?? 0) + 1;
  tally.bytes += bytes;
};

export const addViolation = (tally: Tally, what: string): void => {
  tally.violationCount++;
  if (tally.violations.length < MAX_VIOLATIONS) tally.violations.push(`${new Date().toISOString()} ${what}`);
};

export const addTally = (sum: Tally, more: Tally): void => {
  for (const [what, count] of Object.entries(more.done)) sum.done[what] = (sum.done[what] ?? 0) + count;
  sum.bytes += more.bytes;
  sum.cutOffs.push(...more.cutOffs);
  sum.lost.push(...more.lost);
  sum.violationCount += more.violationCount;
  sum.violations.push(...more.violations);
};

/** Clocks of processes on one machine are one clock; messages and the kernel's work take this long. */
const SLACK_MS = 100;
/** A server that was killed is noticed within this time, by all that used it: clients on a busy machine are slow. */
const AFTERMATH_MS = 10_000;

/**
 * What a tally holds against the proxy, when servers were killed at these times: cut-off answers of a server that was
 * not, and requests that nobody answered although no server died meanwhile.
 */
export const judge = (tally: Tally, killedMs: ReadonlyMap<string, number>): string[] => {
  const times = [...killedMs.values()];
  const diedBetween = (fromMs: number, toMs: number) =>
    times.some((at) => at >= fromMs - AFTERMATH_MS && at <= toMs + SLACK_MS);
  const cutOffs = tally.cutOffs.filter(({ server, atMs }) => {
    if (server === '') return !diedBetween(atMs - AFTERMATH_MS, atMs);
    const killedAt = killedMs.get(server);
    return killedAt === undefined || atMs < killedAt - SLACK_MS;
  });
  const lost = tally.lost.filter(({ startedMs, atMs }) => !diedBetween(startedMs, atMs));
  return [
    ...tally.violations,
    ...cutOffs.map(({ what, server }) => `${what} was cut off by ${server || 'nobody'}, which was not killed`),
    ...lost.map(({ what, why }) => `${what} was not answered (${why}) although no server died`),
  ];
};
