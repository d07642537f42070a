import { existsSync, writeFileSync } from 'node:fs';
import type { AnyStateMachine } from 'xstate';
import { machines } from '../../machines/index.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { machineGraph } from '../graph/machineGraph.ts';
import { drawMachine, drawSystem, svgOf } from '../graph/render.ts';
import { systemGraph } from '../graph/systemGraph.ts';
import { loadOrThrow } from '../run.ts';

export const graphCommand = async (
  what: string,
  options: { format: 'svg' | 'mermaid' | 'dot'; output?: string },
): Promise<void> => {
  const machine = Object.hasOwn(machines, what) ? (machines as Record<string, AnyStateMachine>)[what] : undefined;
  if (!machine && !existsSync(what)) {
    throw new UnderstudyError('USAGE', `${what} is neither a machine (${Object.keys(machines).join(', ')}) nor a file`);
  }
  const drawing = machine ? drawMachine(machineGraph(machine)) : drawSystem(systemGraph(loadOrThrow(what).config));
  const text = options.format === 'svg' ? await svgOf(drawing.dot) : drawing[options.format];
  if (options.output === undefined) {
    process.stdout.write(text);
    return;
  }
  try {
    writeFileSync(options.output, text);
  } catch (error) {
    throw new UnderstudyError('USAGE', `${options.output} can't be written: ${messageOf(error)}`);
  }
};
