/**
 * Virtual addresses of the loopback range: they are on every machine already, so the router that is master has its
 * listeners open, and the others haven't. It takes no privilege, and two nodes of one machine can hold one between them.
 */
import type { AddressAnswer } from '../../actors/virtualAddress.ts';
import type { ActorSystem } from '../../actors/system.ts';

/**
 * A successor on the same machine opens its listeners after its first advert: until then, ours serve. It takes two
 * milliseconds, and a busy machine some tens.
 */
const SUCCESSOR_LISTENS_MS = 250;

export class BoundAddresses {
  #system: () => ActorSystem;
  /** Listener → the virtual address that opens and closes it. */
  #holders = new Map<string, string>();
  #binding = new Map<string, (answer: AddressAnswer) => void>();
  #unbinding = new Map<string, NodeJS.Timeout>();

  constructor(system: () => ActorSystem) {
    this.#system = system;
  }

  configure(holders: Map<string, string>): void {
    this.#holders = holders;
  }

  opensWithItsAddress(listener: string): boolean {
    return this.#holders.has(listener);
  }

  /** Answered when all who listen on it do. */
  bind(address: string, done: (answer: AddressAnswer) => void): void {
    clearTimeout(this.#unbinding.get(address));
    this.#unbinding.delete(address);
    this.#binding.set(address, done);
    for (const id of this.#listenersOf(address)) this.#system().send(id, { type: 'listener.open' });
    this.settle();
  }

  unbind(address: string, done: (answer: AddressAnswer) => void): void {
    this.#binding.delete(address);
    const listeners = this.#listenersOf(address);
    const close = () => {
      this.#unbinding.delete(address);
      for (const id of listeners) this.#system().send(id, { type: 'listener.drain' });
      done({ ok: true });
    };
    const isOpen = (id: string) => ['open', 'opening'].includes(this.#system().get(id)?.state ?? '');
    if (listeners.some(isOpen)) this.#unbinding.set(address, setTimeout(close, SUCCESSOR_LISTENS_MS));
    else close();
  }

  /** To be called after each transition. */
  settle(): void {
    for (const [address, done] of [...this.#binding]) {
      if (!this.#listenersOf(address).every((id) => this.#system().get(id)?.state === 'open')) continue;
      this.#binding.delete(address);
      done({ ok: true });
    }
  }

  #listenersOf(address: string): string[] {
    return [...this.#holders].flatMap(([id, holder]) => (holder === address ? [id] : []));
  }
}
