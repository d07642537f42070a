/**
 * A list that things come to and go from at every request: sessions of a server, connections of a listener. A Set would do,
 * but one that is added to and deleted from all the time keeps rehashing, and its outgrown tables hold each other, with
 * all that was in them, until the next full garbage collection.
 */
import assert from 'node:assert/strict';

export type Member = {
  /** Its place in the list that it is in; -1 while it is in none. */
  memberIndex: number;
};

export class Members<T extends Member> {
  #members: T[] = [];

  get size(): number {
    return this.#members.length;
  }

  add(member: T): void {
    assert(member.memberIndex === -1, 'it is in one list at a time');
    member.memberIndex = this.#members.length;
    this.#members.push(member);
  }

  /** Whether it was in the list. */
  delete(member: T): boolean {
    const index = member.memberIndex;
    if (index === -1) return false;
    member.memberIndex = -1;
    const last = this.#members.pop()!;
    if (last === member) return true;
    this.#members[index] = last;
    last.memberIndex = index;
    return true;
  }

  /** As they are now: what is done to one may take it out of the list. */
  snapshot(): T[] {
    return [...this.#members];
  }
}
