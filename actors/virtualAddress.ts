import type { ActorRef, Hands } from './system.ts';

export type AddressAnswer = { ok: true } | { ok: false; code: string; message: string };

/** Port: addresses of this machine and their neighbours. Answers once; a later call takes an earlier one's place. */
export type AddressPort = {
  add(address: string, answer: (answer: AddressAnswer) => void): void;
  remove(address: string, answer: (answer: AddressAnswer) => void): void;
  announce(address: string, count: number): void;
};

export const virtualAddressHands = (port: AddressPort): Hands => {
  const answered = (actor: ActorRef, done: string, failed: string) => (answer: AddressAnswer) => {
    const { code, message } = answer.ok ? { code: '', message: '' } : answer;
    actor.send((answer.ok ? { type: done } : { type: failed, code, message }) as { type: string });
  };
  return {
    addAddress: (_: never, actor) => port.add(actor.id, answered(actor, 'address.added', 'address.addFailed')),
    removeAddress: (_: never, actor) =>
      port.remove(actor.id, answered(actor, 'address.removed', 'address.removeFailed')),
    announce: ({ count }: { count: number }, { id }) => port.announce(id, count),
  };
};
