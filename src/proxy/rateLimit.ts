/** Whose requests are counted together, and what a limit on them says. */
import { bytesOf } from './pattern.ts';
import type { RateTable } from './rateTable.ts';
import { Meters, TokenBuckets } from './rateTable.ts';
import type { RequestView } from './requestView.ts';
import type { RateKey } from './ruleModel.ts';

/** Tells a table which key the request belongs to. */
const keyer = (key: RateKey): ((view: RequestView, table: RateTable) => void) => {
  if (key.by === 'source') return keySource;
  const read =
    key.by === 'header'
      ? (
          (lower) => (view: RequestView) =>
            view.header(lower)
        )(key.name.toLowerCase())
      : (
          (name) => (view: RequestView) =>
            view.cookie(name)
        )(bytesOf(key.name));
  return (view, table) => {
    const value = read(view);
    // Without it, leaving it out would be the way around the limit.
    if (value === null) keySource(view, table);
    else table.keyText(value);
  };
};

/** An IPv6 client counts by its /64, which is what one is given: it has 2^64 addresses to choose from. */
const keySource = (view: RequestView, table: RateTable): void => {
  const { family, sourceWords } = view;
  if (family === 4) table.keyWords(4, sourceWords[0]!);
  else if (family === 6) table.keyWords(sourceWords[0]!, sourceWords[1]!);
  else table.keyText(view.facts.source);
};

export type Limit = { key: RateKey; tokenMs: number; burst: number; memory: SharedArrayBuffer };

/** Takes a token for a request: 0 when there was one, or else the ms until there will be. */
export const compileLimit = (
  { key, tokenMs, burst, memory }: Limit,
  nowMs: () => number,
): ((view: RequestView) => number) => {
  const buckets = new TokenBuckets(memory, tokenMs, burst);
  const settle = keyer(key);
  return (view) => {
    if (view.isCounted) return 0;
    settle(view, buckets);
    return buckets.take(nowMs());
  };
};

export type Threshold = { key: RateKey; perMs: number; above: number; memory: SharedArrayBuffer };

/** Counts a request, and tells whether its key comes more often than that. */
export const compileThreshold = (
  { key, perMs, above, memory }: Threshold,
  nowMs: () => number,
): ((view: RequestView) => boolean) => {
  const meters = new Meters(memory, perMs);
  const settle = keyer(key);
  return (view) => {
    settle(view, meters);
    return meters.count(nowMs(), view.isCounted ? 0 : 1) > above;
  };
};
