import { runScript } from '../runScript.ts';
import type { Script } from '../runScript.ts';
import { observe } from './observation.ts';
import type { Observation } from './observation.ts';

/** One run of a script (keepalived's track_script): exit status 0 is ok. Codes as of `runScript`. */
export const observeScript = (o: Script, done: (observation: Observation) => void): (() => void) =>
  observe((finish) => runScript(o, (outcome) => finish({ ...outcome, value: null })), done);
