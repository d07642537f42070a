/** What every node says of every server of shared pools, as it was last heard; who sees nothing comes from it. No I/O. */
import type { Word } from '../../machines/healthQuorum.ts';
import type { SightCount } from '../../machines/nodeSight.ts';
import { encodeViews, listHash } from './viewText.ts';
import type { Opinion } from './viewText.ts';

export type SharedPool = {
  share: 'observe' | 'quorum';
  divide: boolean;
  by: number;
  /** In the configuration's order. */
  servers: readonly string[];
};

export type HeardView = Word & { atUs: number };

type Page = SharedPool & { hash: string; places: Map<string, number>; views: Map<string, (HeardView | null)[]> };
type Count = { seen: number; of: number };

export class ViewBook {
  readonly #pages = new Map<string, Page>();
  /** By node, over all pools by quorum. */
  readonly #counts = new Map<string, Count>();

  /** Takes the pools of a configuration. What is known of servers that stay is kept. */
  configure(pools: ReadonlyMap<string, SharedPool>): void {
    const before = new Map(this.#pages);
    this.#pages.clear();
    this.#counts.clear();
    for (const [name, pool] of pools) {
      const { servers } = pool;
      const places = new Map(servers.map((server, place) => [server, place]));
      this.#pages.set(name, { ...pool, hash: listHash(servers), places, views: new Map() });
      const known = before.get(name);
      for (const [node, views] of known?.views ?? []) {
        views.forEach((view, place) => {
          const server = known!.servers[place]!;
          if (view && places.has(server)) this.set(name, server, node, view.view, view.message, view.atUs);
        });
      }
    }
  }

  pool(name: string): (SharedPool & { hash: string }) | undefined {
    return this.#pages.get(name);
  }

  pools(): IterableIterator<[string, SharedPool & { hash: string }]> {
    return this.#pages.entries();
  }

  /** @returns whether that is another view than before; a server that isn't known is nobody's. */
  set(pool: string, server: string, node: string, view: Opinion, message: string, atUs: number): boolean {
    const page = this.#pages.get(pool);
    const place = page?.places.get(server);
    if (!page || place === undefined) return false;
    let views = page.views.get(node);
    const before = views?.[place] ?? null;
    if ((before?.view ?? 'none') === view) return false;
    if (!views) page.views.set(node, (views = Array<HeardView | null>(page.servers.length).fill(null)));
    views[place] = view === 'none' ? null : { view, message, atUs };
    if (page.share === 'quorum') this.#count(node, before, views[place]);
    return true;
  }

  /** Everything that a node has said. @returns the servers of which it had a view */
  forget(node: string): { pool: string; server: string }[] {
    const forgotten: { pool: string; server: string }[] = [];
    for (const [pool, { views, servers }] of this.#pages) {
      views.get(node)?.forEach((view, place) => view && forgotten.push({ pool, server: servers[place]! }));
      views.delete(node);
    }
    this.#counts.delete(node);
    return forgotten;
  }

  /** By node. */
  viewsOf(pool: string, server: string): Map<string, HeardView> {
    const page = this.#pages.get(pool);
    const place = page?.places.get(server);
    const known = new Map<string, HeardView>();
    if (!page || place === undefined) return known;
    for (const [node, views] of page.views) {
      const view = views[place];
      if (view) known.set(node, view);
    }
    return known;
  }

  opinion(pool: string, server: string, node: string): Opinion {
    return this.viewsOf(pool, server).get(node)?.view ?? 'none';
  }

  /** As a heartbeat has it. */
  text(pool: string, node: string): string {
    const { hash, servers, views } = this.#pages.get(pool)!;
    const own = views.get(node);
    return encodeViews(
      hash,
      servers.map((_, place) => own?.[place]?.view ?? 'none'),
    );
  }

  /** Nodes that see none of their servers, while another one sees some of these. */
  blind(): string[] {
    return [...this.#counts]
      .filter(([node, { seen, of }]) => seen === 0 && of > 0 && this.#isContradicted(node))
      .map(([node]) => node)
      .sort();
  }

  counts(): Record<string, SightCount> {
    return Object.fromEntries(
      [...this.#counts]
        .filter(([, { of }]) => of > 0)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([node, { seen, of }]) => [
          node,
          seen > 0 ? { seen, of } : { seen, of, others: this.#seenByOthers(node) },
        ]),
    );
  }

  #count(node: string, before: HeardView | null, after: HeardView | null): void {
    let count = this.#counts.get(node);
    if (!count) this.#counts.set(node, (count = { seen: 0, of: 0 }));
    count.of += Number(after !== null) - Number(before !== null);
    count.seen += Number(after?.view === 'up') - Number(before?.view === 'up');
  }

  #isContradicted(node: string): boolean {
    for (const _ of this.#contradictions(node)) return true;
    return false;
  }

  #seenByOthers(node: string): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const other of this.#contradictions(node)) counts[other] = (counts[other] ?? 0) + 1;
    return counts;
  }

  /** For each server that the node sees down: each node that sees it up. */
  *#contradictions(node: string): Generator<string> {
    for (const { share, views } of this.#pages.values()) {
      const own = views.get(node);
      if (share !== 'quorum' || !own) continue;
      for (const [other, theirs] of views) {
        if (other === node) continue;
        for (let place = 0; place < own.length; place++)
          if (own[place]?.view === 'down' && theirs[place]?.view === 'up') yield other;
      }
    }
  }
}
