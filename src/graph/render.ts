/** Graphs as DOT (laid out by Graphviz, which also makes the SVG) and as Mermaid. */
import type { GraphState, MachineGraph } from './machineGraph.ts';
import type { SystemGraph, SystemNode } from './systemGraph.ts';

export type Drawing = { dot: string; mermaid: string };

export const svgOf = async (dot: string): Promise<string> =>
  (await (await import('@viz-js/viz')).instance()).renderString(dot, { format: 'svg', engine: 'dot' });

const FONT = 'Helvetica,Arial,sans-serif';
const quote = (text: string): string =>
  `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')}"`;

const indented = (lines: string[]): string[] => lines.map((line) => `  ${line}`);

const HEADER = [
  `graph [fontname="${FONT}" fontsize=12 bgcolor="white" pad=0.3 nodesep=0.5 ranksep=0.6 compound=true newrank=true]`,
  `node [fontname="${FONT}" fontsize=12 shape=box style="rounded,filled" fillcolor="#eef3fb" color="#3b5b8c" margin="0.25,0.12"]`,
  `edge [fontname="${FONT}" fontsize=10 color="#555555" fontcolor="#333333" arrowsize=0.7]`,
];

export const drawMachine = (graph: MachineGraph): Drawing => ({
  dot: machineDot(graph),
  mermaid: machineMermaid(graph),
});

/** Arrows in DOT end at nodes: for a compound state that is its first state, clipped at the border of its box. */
const anchorOf = (state: GraphState): string => {
  const initial = state.states.find(({ id }) => id === state.initial) ?? state.states[0];
  return initial ? anchorOf(initial) : state.id;
};

const machineDot = ({ name, root, transitions }: MachineGraph): string => {
  const byId = new Map<string, GraphState>();
  const walk = (state: GraphState) => {
    byId.set(state.id, state);
    state.states.forEach(walk);
  };
  walk(root);
  /** What leaves a state where it is, as UML has it: in the state's own box, and no arrow from it to itself. */
  const internal = new Map<string, string[]>();
  const edges = transitions.flatMap(({ from, to, label }) => {
    const source = byId.get(from)!;
    const target = byId.get(to)!;
    const lines = label.split('\n');
    if (anchorOf(source) === anchorOf(target)) {
      const arrow = from === to ? '' : ` → ${target.name}`;
      internal.set(from, [...(internal.get(from) ?? []), ...lines.map((line) => `${line}${arrow}`)]);
      return [];
    }
    const clip = [
      ...(source.states.length > 0 ? [`ltail=${quote(`cluster_${from}`)}`] : []),
      ...(target.states.length > 0 ? [`lhead=${quote(`cluster_${to}`)}`] : []),
    ];
    // An arrow from a box into itself has no border to be clipped at.
    const isInner = isWithin(source, to) || isWithin(target, from);
    const told = lines.map((line) => (isWithin(source, to) ? `from any: ${line}` : line));
    const attributes = [`label=${quote(`  ${told.join('  \n  ')}  `)}`, ...(isInner ? [] : clip)];
    return [`${quote(anchorOf(source))} -> ${quote(anchorOf(target))} [${attributes.join(' ')}]`];
  });
  return [
    `digraph ${quote(name)} {`,
    ...indented([
      ...HEADER,
      `label=${quote(name)}`,
      'labelloc=t',
      'fontsize=16',
      // Left to right: between states side by side Graphviz lays labels of both directions over each other.
      'rankdir=LR',
      ...root.states.flatMap((state) => stateDot(state, root, internal)),
      ...initialDot(root),
      ...edges,
    ]),
    '}',
    '',
  ].join('\n');
};

const isWithin = (outer: GraphState, id: string): boolean =>
  outer.states.some((state) => state.id === id || isWithin(state, id));

const escapeHtml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

/** The name, and in smaller letters what is answered on the spot. */
const labelOf = (state: GraphState, internal: Map<string, string[]>): string => {
  const lines = internal.get(state.id);
  if (!lines) return quote(state.name);
  // Room for viewers whose letters are wider than those that Graphviz measures.
  const small = lines.map((line) => `&#160;&#160;${escapeHtml(line)}&#160;&#160;&#160;&#160;`).join('<br/>');
  return `<${escapeHtml(state.name)}<br/><font point-size="9" color="#555555">${small}</font>>`;
};

const stateDot = (state: GraphState, parent: GraphState, internal: Map<string, string[]>): string[] => {
  if (state.states.length === 0) {
    const isInitial = parent.initial === state.id;
    return [`${quote(state.id)} [label=${labelOf(state, internal)}${isInitial ? ' penwidth=2' : ''}]`];
  }
  const border = parent.parallel ? 'style="rounded,dashed"' : 'style="rounded"';
  return [
    `subgraph ${quote(`cluster_${state.id}`)} {`,
    ...indented([
      `label=${labelOf(state, internal)}`,
      border,
      'color="#8aa0c0"',
      ...state.states.flatMap((child) => stateDot(child, state, internal)),
      // Deeper down the thick border alone tells the initial state: a dot there would pull it to the first rank.
      ...(parent.parallel ? initialDot(state) : []),
    ]),
    '}',
  ];
};

const initialDot = (state: GraphState): string[] => {
  const initial = state.states.find(({ id }) => id === state.initial);
  if (!initial) return [];
  const dot = `${state.id} start`;
  const clip = initial.states.length > 0 ? ` [lhead=${quote(`cluster_${initial.id}`)}]` : '';
  return [
    `${quote(dot)} [shape=circle label="" width=0.12 fillcolor="#3b5b8c"]`,
    `${quote(dot)} -> ${quote(anchorOf(initial))}${clip}`,
  ];
};

const mermaidId = (id: string): string => id.replaceAll(/[^A-Za-z0-9]/g, '_');

const machineMermaid = ({ root, transitions }: MachineGraph): string => {
  const states = (state: GraphState): string[] =>
    state.states.flatMap((child, index) => {
      const own =
        child.states.length === 0
          ? [`state "${child.name}" as ${mermaidId(child.id)}`]
          : [`state "${child.name}" as ${mermaidId(child.id)} {`, ...indented(states(child)), '}'];
      const separator = state.parallel && index > 0 ? ['--'] : [];
      const initial = state.initial === child.id ? [`[*] --> ${mermaidId(child.id)}`] : [];
      return [...separator, ...own, ...initial];
    });
  return [
    'stateDiagram-v2',
    ...indented(states(root)),
    ...transitions
      .filter(({ from }) => from !== root.id)
      .map(({ from, to, label }) => `  ${mermaidId(from)} --> ${mermaidId(to)}: ${label.replaceAll('\n', ' / ')}`),
    '',
  ].join('\n');
};

const FILL: Record<SystemNode['kind'], string> = {
  listener: '#fdf3dc',
  frontend: '#eef3fb',
  pool: '#e8f5ec',
  server: '#f5f5f5',
  router: '#f3e8fb',
  address: '#fdf3dc',
  tracker: '#fde8e8',
  syncGroup: '#ffffff',
  answer: '#fbeee0',
};

const mermaidText = (text: string): string => escapeHtml(text).replaceAll('"', '#quot;').replaceAll('\n', '<br>');

export const drawSystem = ({ name, nodes, edges }: SystemGraph): Drawing => ({
  dot: [
    `digraph ${quote(name)} {`,
    ...indented([
      ...HEADER,
      'rankdir=LR',
      `label=${quote(name)}`,
      'labelloc=t',
      'fontsize=16',
      ...nodes.map(
        ({ id, kind, lines }) => `${quote(id)} [label=${quote(lines.join('\n'))} fillcolor="${FILL[kind]}"]`,
      ),
      ...edges.map(
        ({ from, to, label, dashed }) =>
          `${quote(from)} -> ${quote(to)} [label=${quote(label === '' ? '' : ` ${label} `)}${dashed ? ' style=dashed' : ''}]`,
      ),
    ]),
    '}',
    '',
  ].join('\n'),
  mermaid: [
    'flowchart LR',
    ...nodes.map(({ id, lines }) => `  ${mermaidId(id)}["${mermaidText(lines.join('\n'))}"]`),
    ...edges.map(
      ({ from, to, label, dashed }) =>
        `  ${mermaidId(from)} ${dashed ? '-.->' : '-->'}${label === '' ? '' : `|"${mermaidText(label)}"|`} ${mermaidId(to)}`,
    ),
    '',
  ].join('\n'),
});
