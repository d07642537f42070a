import { performance } from 'node:perf_hooks';
import type { Clock } from '../actors/clock.ts';
import type { Alarm } from './net/alarm.ts';

/** Wall time is derived from the monotonic clock until the two differ by this much: then the wall clock was set. */
const WALL_STEP_US = 2_000;
/** setTimeout takes 31 bits of milliseconds; longer waits are asked for again on waking. */
const LONGEST_WAIT_MS = 2 ** 31 - 1;

/** The machine's own clocks. Monotonic time counts from the construction of the clock. */
export class SystemClock implements Clock {
  #originMs = performance.now();
  #wallAtOriginUs = Date.now() * 1000;
  #timer: NodeJS.Timeout | null = null;
  #immediate: NodeJS.Immediate | null = null;
  #wakeUs: number | null = null;
  #alarm: Alarm | null = null;
  #alarmUs: number | null = null;

  wallUs(): number {
    const monoUs = this.monoUs();
    const systemUs = Date.now() * 1000;
    // Date.now() truncates to a millisecond: being ahead of it by less than that is agreement.
    const aheadUs = this.#wallAtOriginUs + monoUs - systemUs;
    if (aheadUs < -WALL_STEP_US || aheadUs > 1000 + WALL_STEP_US) this.#wallAtOriginUs = systemUs - monoUs;
    return this.#wallAtOriginUs + monoUs;
  }

  monoUs(): number {
    return Math.floor((performance.now() - this.#originMs) * 1000);
  }

  /** From now on what has to be precise is woken by this one. */
  useAlarm(alarm: Alarm | null): void {
    this.#alarm = alarm;
    this.#alarmUs = null;
  }

  wakeAt(monoUs: number | null, wake: () => void, precise = false): void {
    if (precise && monoUs !== null) this.#setAlarm(monoUs, wake);
    // Waking too early is harmless (nothing is due, the next time is asked for): only an earlier deadline needs a new
    // timer, so a loop that handles thousands of events a second doesn't set thousands of timers.
    if (monoUs === null || (this.#wakeUs !== null && this.#wakeUs <= monoUs)) return;
    this.stop();
    this.#wakeUs = monoUs;
    const woken = () => {
      this.stop();
      wake();
    };
    const waitMs = Math.ceil((monoUs - this.monoUs()) / 1000);
    // What is due already is only let wait for the sockets to be looked at, not for a timer's millisecond.
    if (waitMs <= 0) this.#immediate = setImmediate(woken);
    else this.#timer = setTimeout(woken, Math.min(LONGEST_WAIT_MS, waitMs));
  }

  /** Beside the usual timer, which wakes late instead of not at all. One that is set already and earlier will do. */
  #setAlarm(monoUs: number, wake: () => void): void {
    if (!this.#alarm || (this.#alarmUs !== null && this.#alarmUs <= monoUs)) return;
    this.#alarmUs = monoUs;
    this.#alarm.set(monoUs - this.monoUs(), () => {
      this.#alarmUs = null;
      wake();
    });
  }

  stop(): void {
    if (this.#timer) clearTimeout(this.#timer);
    if (this.#immediate) clearImmediate(this.#immediate);
    this.#timer = null;
    this.#immediate = null;
    this.#wakeUs = null;
  }
}
