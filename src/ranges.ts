/** Sets of whole numbers, kept as ranges: both ends belong to them. */
export type Range = { from: number; through: number };

export class Ranges {
  /** In order, and apart: between two of them at least one number is missing. */
  readonly list: Range[];

  private constructor(list: Range[]) {
    this.list = list;
  }

  /** Of any ranges, in any order. */
  static of(ranges: readonly Range[] = []): Ranges {
    const made = new Ranges([]);
    for (const { from, through } of ranges.toSorted((a, b) => a.from - b.from)) made.add(from, through);
    return made;
  }

  get isEmpty(): boolean {
    return this.list.length === 0;
  }

  get first(): number | null {
    return this.list[0]?.from ?? null;
  }

  get last(): number | null {
    return this.list.at(-1)?.through ?? null;
  }

  add(from: number, through = from): void {
    const last = this.list.at(-1);
    // Nearly all come in order.
    if (last && from >= last.from) {
      if (from <= last.through + 1) last.through = Math.max(last.through, through);
      else this.list.push({ from, through });
      return;
    }
    const apart = this.list.filter((each) => each.through < from - 1 || each.from > through + 1);
    const touched = this.list.filter((each) => !apart.includes(each));
    const whole = {
      from: Math.min(from, ...touched.map((each) => each.from)),
      through: Math.max(through, ...touched.map((each) => each.through)),
    };
    this.list.splice(0, Infinity, ...[...apart, whole].toSorted((a, b) => a.from - b.from));
  }

  has(value: number): boolean {
    const nearest = this.list.findLast(({ from }) => from <= value);
    return nearest !== undefined && nearest.through >= value;
  }

  union(other: Ranges): Ranges {
    return Ranges.of([...this.list, ...other.list]);
  }

  minus(other: Ranges): Ranges {
    const left = other.list.reduce(
      (rest, { from, through }) =>
        rest.flatMap((each) =>
          [
            { from: each.from, through: Math.min(each.through, from - 1) },
            { from: Math.max(each.from, through + 1), through: each.through },
          ].filter((part) => part.from <= part.through),
        ),
      this.list,
    );
    return Ranges.of(left);
  }

  /** What is missing between the first and the last. */
  gaps(): Ranges {
    return Ranges.of(
      this.list.slice(1).map(({ from }, index) => ({ from: this.list[index]!.through + 1, through: from - 1 })),
    );
  }
}
