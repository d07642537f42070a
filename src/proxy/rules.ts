/**
 * Rules of a frontend: what is to become of a request, decided in order. Compiled once. What a request is told depends
 * on which rules hold for it, and those combinations are few: each is made once and given to all that have it, so that
 * most requests are decided without allocating. Only what a client's own words go into is made anew.
 */
import type { Action, Change } from './actions.ts';
import { compileAction } from './actions.ts';
import type { Check } from './conditions.ts';
import { compileCondition, hostOf } from './conditions.ts';
import type { RequestFacts } from './facts.ts';
import type { HeaderEdit } from './headEdits.ts';
import { NameTable } from './names.ts';
import { RequestView } from './requestView.ts';
import type { ConditionModel, RuleModel } from './ruleModel.ts';

export type { HeaderEdit } from './headEdits.ts';

export type Answer = {
  readonly status: number;
  /** Without Content-Length, Date and Connection, which are the engine's. */
  readonly headers: readonly (readonly [name: string, value: string])[];
  /** Text in UTF-8; null asks for the error page of the status. */
  readonly body: string | null;
  /** A tarpit: how long the client waits for it. */
  readonly delayMs: number;
};

export type Decision = {
  /** Null: the default backend. */
  readonly backend: string | null;
  /** Not null: no server sees the request. */
  readonly answer: Answer | null;
  /** Path and query to send instead of those that came; null when unchanged. */
  readonly target: string | null;
  /** To be applied in order, to what the client sent. */
  readonly requestEdits: readonly HeaderEdit[];
  readonly responseEdits: readonly HeaderEdit[];
  /**
   * Null, except while a password is being verified by another thread: park the request, call this with what shall be
   * called once, and decide again then. An engine that can't wait sends `answer`, a 503, instead.
   */
  readonly wait: ((resume: () => void) => void) | null;
};

export type ConnectionDecision = { readonly backend: string | null; readonly reject: boolean };

export type RuleContext = {
  usableServers(backend: string): number;
  /** Milliseconds of the machine's monotonic clock, the same in all workers (not `performance.now()`). */
  nowMs(): number;
};

/** Rules that only say which backend a name has are one step when at least this many follow each other. */
const MIN_VIRTUAL_HOSTS = 4;
/** Combinations of rules that are remembered; beyond, decisions are made anew each time. */
const MAX_OUTCOMES = 4_096;

type Step = { when: Check | null; act: Action; isUse: boolean };

/** What holds after some rules, and what it becomes by each that may hold next. */
type Outcome = { decision: Decision; next: Map<Change, Outcome> };

const NOTHING: Decision = Object.freeze({
  backend: null,
  answer: null,
  target: null,
  requestEdits: Object.freeze([]),
  responseEdits: Object.freeze([]),
  wait: null,
});

/** `models` are those that `ruleModelsOf` makes. */
export const compileRules = (models: readonly RuleModel[], context: RuleContext): RuleSet =>
  new RuleSet(stepsOf(models, context), mentions(models, 'serverName'));

/** Whether a condition of that kind, or a template with `{kind}`, is among the rules. */
const mentions = (models: readonly RuleModel[], kind: string): boolean => {
  const text = JSON.stringify(models);
  return text.includes(`"kind":"${kind}"`) || text.includes(`{${kind}}`);
};

/** Whether a request needs an id for them. */
export const usesId = (models: readonly RuleModel[]): boolean => mentions(models, 'id');

export class RuleSet {
  /** In mode tcp the client has to say it before they can decide. */
  readonly usesServerName: boolean;
  /** How many rules stand before the one that ended the last decision. */
  asked = 0;
  #steps: Step[];
  #view = new RequestView();
  #start: Outcome = { decision: NOTHING, next: new Map() };
  #outcomes = 1;
  #connections = new Map<Decision, ConnectionDecision>();

  constructor(steps: Step[], usesServerName: boolean) {
    this.#steps = steps;
    this.usesServerName = usesServerName;
  }

  /**
   * `id` names the request in `{id}`. What is returned may be shared: it must not be changed. One that is decided again,
   * after `wait`, is not counted again by what was asked before: `counted` is `asked` of that time.
   */
  decide(facts: RequestFacts, id: string, counted = 0): Decision {
    const steps = this.#steps;
    if (steps.length === 0) return NOTHING;
    const view = this.#view;
    view.begin(facts, id);
    let outcome: Outcome | null = this.#start;
    let { decision } = outcome;
    for (let at = 0; at < steps.length; at++) {
      const step = steps[at]!;
      view.isCounted = at < counted;
      // The first backend that is named counts.
      if (step.isUse && decision.backend !== null) continue;
      if (step.when !== null && !step.when(view)) continue;
      const change = step.act(view);
      if (change === null) continue;
      outcome = outcome !== null && change.isShared ? this.#after(outcome, change) : null;
      decision = outcome !== null ? outcome.decision : merged(decision, change);
      view.edits = decision.requestEdits;
      if (change.ends) {
        this.asked = at;
        break;
      }
    }
    if (view.isRewritten && decision.answer === null) decision = { ...decision, target: view.target };
    view.end();
    return decision;
  }

  /** In mode tcp. */
  decideConnection(facts: RequestFacts): ConnectionDecision {
    const decision = this.decide(facts, '');
    const known = this.#connections.get(decision);
    if (known) return known;
    const made = { backend: decision.backend, reject: decision.answer !== null };
    // Those made anew each time are not worth remembering.
    if (Object.isFrozen(decision)) this.#connections.set(decision, made);
    return made;
  }

  #after(outcome: Outcome, change: Change): Outcome | null {
    const known = outcome.next.get(change);
    if (known) return known;
    if (this.#outcomes >= MAX_OUTCOMES) return null;
    this.#outcomes++;
    const made = { decision: Object.freeze(merged(outcome.decision, change)), next: new Map<Change, Outcome>() };
    outcome.next.set(change, made);
    return made;
  }
}

const joined = <T>(first: readonly T[], second: readonly T[]): readonly T[] =>
  second.length === 0 ? first : first.length === 0 ? second : Object.freeze([...first, ...second]);

const merged = (decision: Decision, change: Change): Decision => ({
  backend: decision.backend ?? change.backend,
  answer: change.answer,
  target: null,
  requestEdits: joined(decision.requestEdits, change.requestEdits),
  responseEdits: joined(decision.responseEdits, change.responseEdits),
  wait: change.wait,
});

const stepsOf = (models: readonly RuleModel[], context: RuleContext): Step[] => {
  const steps: Step[] = [];
  for (let at = 0; at < models.length;) {
    const run = virtualHostsFrom(models, at);
    if (run.length >= MIN_VIRTUAL_HOSTS) {
      steps.push(virtualHosts(run, context));
      at += run.length;
      continue;
    }
    const { when, action } = models[at]!;
    steps.push({
      when: when === null ? null : compileCondition(when, context),
      act: compileAction(action, context),
      isUse: action.kind === 'use',
    });
    at++;
  }
  return steps;
};

type VirtualHost = { when: Extract<ConditionModel, { kind: 'host' | 'serverName' }>; act: RuleModel['action'] };

/** The rules from there on that only ask for a name and only say a backend. */
const virtualHostsFrom = (models: readonly RuleModel[], from: number): VirtualHost[] => {
  const run: VirtualHost[] = [];
  for (const { when, action } of models.slice(from)) {
    const isName = when !== null && (when.kind === 'host' || when.kind === 'serverName');
    if (!isName || action.kind !== 'use' || (run[0] && run[0].when.kind !== when.kind)) break;
    run.push({ when, act: action });
  }
  return run;
};

/** Thousands of names cost as much as one. */
const virtualHosts = (run: VirtualHost[], context: RuleContext): Step => {
  const table = new NameTable();
  run.forEach(({ when }, order) => {
    for (const name of when.names) table.add(name, order);
  });
  const actions = run.map(({ act }) => compileAction(act, context));
  const nameOf = run[0]!.when.kind === 'host' ? hostOf : (view: RequestView): string | null => view.facts.serverName;
  const act: Action = (view) => {
    const name = nameOf(view);
    const order = name === null ? Infinity : table.find(name);
    return order === Infinity ? null : actions[order]!(view);
  };
  return { when: null, act, isUse: true };
};
