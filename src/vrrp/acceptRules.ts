/**
 * `accept: false` (RFC 9568 section 6.1): a master that is not the owner takes no packets for the virtual addresses
 * themselves. A table of nftables of its own for each router drops them, but for neighbour discovery.
 */
import { execFile } from 'node:child_process';
import { isIP } from 'node:net';

/** Names of routers may have dots and dashes, those of tables can't; what is spelled out stays unique. */
const tableName = (router: string): string =>
  `understudy_${router.replaceAll(/[^A-Za-z0-9]/g, (letter) => `_${letter.charCodeAt(0).toString(16)}_`)}`;

export class AcceptRules {
  #warn: (message: string) => void;
  /** Router → its table, and what it was made of. */
  #tables = new Map<string, { table: string; script: string }>();
  /** One after the other: a table must not be taken away before it is made. */
  #last: Promise<void> = Promise.resolve();

  constructor(warn: (message: string) => void) {
    this.#warn = warn;
  }

  want(router: string, addresses: string[]): void {
    const table = tableName(router);
    const rules = addresses.flatMap((address) =>
      isIP(address) === 4
        ? [`ip daddr ${address} drop`]
        : [
            `ip6 daddr ${address} icmpv6 type != { nd-neighbor-solicit, nd-neighbor-advert } drop`,
            `ip6 daddr ${address} meta l4proto != icmpv6 drop`,
          ],
    );
    // Made anew: one that an earlier life has left may have other rules.
    const script = [
      `table inet ${table} {}`,
      `delete table inet ${table}`,
      `table inet ${table} {`,
      'chain input {',
      'type filter hook input priority 0',
      ...rules,
      '}',
      '}',
    ].join('\n');
    if (this.#tables.get(router)?.script === script) return;
    this.#tables.set(router, { table, script });
    this.#run(script);
  }

  release(router: string): void {
    const made = this.#tables.get(router);
    if (!made) return;
    this.#tables.delete(router);
    this.#run(`delete table inet ${made.table}`);
  }

  tables(): string[] {
    return [...this.#tables.values()].map(({ table }) => table);
  }

  async end(): Promise<void> {
    for (const router of [...this.#tables.keys()]) this.release(router);
    await this.#last;
  }

  #run(script: string): void {
    this.#last = this.#runAfter(this.#last, script);
  }

  async #runAfter(last: Promise<void>, script: string): Promise<void> {
    await last;
    const { promise, resolve } = Promise.withResolvers<string>();
    execFile('nft', [script], (error, _stdout, stderr) => resolve(error ? stderr.trim() || error.message : ''));
    const trouble = await promise;
    if (trouble !== '') this.#warn(`accept: false can't be kept: ${trouble}`);
  }
}
