/** Time as the actor system sees it. Microseconds throughout: a skew time at 10 ms intervals needs them. */
export type Clock = {
  /** Wall-clock time in µs since 1970; may step. For people, never for decisions. */
  wallUs(): number;
  /** Monotonic time in µs since the node started. */
  monoUs(): number;
  /**
   * Calls `wake` once when `monoUs` has come; a later call replaces an earlier one; `null` asks for no call. `precise`
   * asks for a fraction of a millisecond where that can be had: it costs more.
   */
  wakeAt(monoUs: number | null, wake: () => void, precise: boolean): void;
};

/** A clock that stands still until it is told: replay, what-if and rehearsal run on it. */
export class VirtualClock implements Clock {
  #monoUs: number;
  #wallAtZeroUs: number;

  constructor(start: { wallUs: number; monoUs: number }) {
    this.#monoUs = start.monoUs;
    this.#wallAtZeroUs = start.wallUs - start.monoUs;
  }

  wallUs(): number {
    return this.#wallAtZeroUs + this.#monoUs;
  }

  monoUs(): number {
    return this.#monoUs;
  }

  /** The driver of a virtual world asks the system for its next deadline and goes there; nobody needs to be woken. */
  wakeAt(): void {}

  /** Time never runs backwards; going to the present is allowed. */
  advanceTo(monoUs: number): void {
    if (monoUs > this.#monoUs) this.#monoUs = monoUs;
  }
}
