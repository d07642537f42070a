import type { ActorRef, Hands } from './system.ts';

export type ProbeAnswer = { ok: boolean; code: string; message: string; durationMs: number };

/** Port: probes the server of a checker once. Answers once, unless aborted by the function that it returns. */
export type ProbePort = (checker: string, timeoutMs: number, answer: (result: ProbeAnswer) => void) => () => void;

export const healthCheckerHands = (probe: ProbePort): Hands => {
  const underWay = new Map<string, () => void>();
  const abort = (_params: unknown, { id }: ActorRef) => {
    underWay.get(id)?.();
    underWay.delete(id);
  };
  return {
    startProbe: ({ timeoutMs }: { timeoutMs: number }, actor) => {
      try {
        underWay.set(
          actor.id,
          probe(actor.id, timeoutMs, ({ ok, ...result }) => {
            underWay.delete(actor.id);
            actor.send({ type: ok ? 'probe.passed' : 'probe.failed', ...result });
          }),
        );
      } catch (error) {
        actor.send({ type: 'probe.failed', code: 'UNPROBED', message: String(error), durationMs: 0 } as {
          type: string;
        });
        throw error;
      }
    },
    abortProbe: abort,
    'actor.stopped': abort,
  };
};
