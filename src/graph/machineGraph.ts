/** A machine as a graph: its states, nested as they are, and its transitions with what makes them happen. */
import type { AnyStateMachine, AnyStateNode } from 'xstate';

export type GraphState = { id: string; name: string; parallel: boolean; initial: string | null; states: GraphState[] };
export type GraphTransition = { from: string; to: string; label: string };
export type MachineGraph = { name: string; root: GraphState; transitions: GraphTransition[] };

export const machineGraph = (machine: AnyStateMachine): MachineGraph => ({
  name: machine.id,
  root: stateOf(machine.root),
  transitions: transitionsOf(machine.root),
});

const stateOf = (node: AnyStateNode): GraphState => ({
  id: node.id,
  name: node.key,
  parallel: node.type === 'parallel',
  initial: node.type === 'compound' ? (node.initial.target[0]?.id ?? null) : null,
  states: Object.values(node.states).map(stateOf),
});

type Transition = {
  eventType: string;
  guard?: unknown;
  target?: readonly AnyStateNode[] | undefined;
  actions: readonly unknown[];
};

const transitionsOf = (node: AnyStateNode): GraphTransition[] => {
  const own = [...[...node.transitions.values()].flat(), ...(node.always ?? [])] as unknown as Transition[];
  const drawn = own.flatMap((transition) => {
    const targets = transition.target?.map(({ id }) => id) ?? [];
    // One without a target is an answer given on the spot; without actions it only says that the event is expected.
    if (targets.length === 0)
      return transition.actions.length > 0 && node.parent
        ? [{ from: node.id, to: node.id, label: labelOf(transition) }]
        : [];
    return targets.map((to) => ({ from: node.id, to, label: labelOf(transition) }));
  });
  return [...merge(drawn), ...Object.values(node.states).flatMap(transitionsOf)];
};

/** Several reasons for the same step are one arrow with several lines. */
const merge = (transitions: GraphTransition[]): GraphTransition[] => {
  const byEnds = new Map<string, GraphTransition>();
  for (const transition of transitions) {
    const key = `${transition.from} ${transition.to}`;
    const known = byEnds.get(key);
    if (known) known.label += `\n${transition.label}`;
    else byEnds.set(key, { ...transition });
  }
  return [...byEnds.values()];
};

const labelOf = ({ eventType, guard }: Transition): string => {
  const after = /^xstate\.after\.([^.]+)\./.exec(eventType);
  const event = after ? `after ${after[1]}` : eventType;
  const condition = typeof guard === 'string' ? `[${guard}]` : guard ? '[condition]' : '';
  return [event, condition].filter((part) => part !== '').join(' ');
};
