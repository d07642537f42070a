/**
 * Prometheus' text format, version 0.0.4. Samples are written as they are named: a registry that keeps and hashes label
 * sets takes seconds of the control loop for 10,000 servers, and everything here is counted elsewhere already.
 */
export const CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

export type Labels = Record<string, string>;

const escapeValue = (value: string): string =>
  /["\\\n]/.test(value) ? value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n') : value;

/** `{pool="web",server="web1"}`, to be made once for all samples of the same thing. */
export const labelText = (labels: Labels): string => {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeValue(value)}"`);
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
};

/** One more label behind those of a text made by `labelText`. */
export const withLabel = (text: string, name: string, value: string): string =>
  text === '' ? `{${name}="${value}"}` : `${text.slice(0, -1)},${name}="${value}"}`;

export class Family {
  readonly name: string;
  #lines: string[];

  constructor(name: string, type: 'gauge' | 'counter' | 'histogram', help: string) {
    this.name = `understudy_${name}`;
    this.#lines = [`# HELP ${this.name} ${help}`, `# TYPE ${this.name} ${type}`];
  }

  add(labels: string, value: number, suffix = ''): void {
    this.#lines.push(`${this.name}${suffix}${labels} ${value}`);
  }

  text(): string {
    return `${this.#lines.join('\n')}\n`;
  }
}
