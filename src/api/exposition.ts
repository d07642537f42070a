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

export type MakeFamily = (name: string, type: 'gauge' | 'counter' | 'histogram', help: string) => Family;

/** Text that is put together before it leaves the heap: what thousands of servers have to say would burden the collector. */
const PART_LENGTH = 16 * 1024;

export class Family {
  readonly name: string;
  #head: string;
  #parts: Buffer[] = [];
  #tail = '';

  constructor(name: string, type: 'gauge' | 'counter' | 'histogram', help: string) {
    this.name = `understudy_${name}`;
    this.#head = `# HELP ${this.name} ${help}\n# TYPE ${this.name} ${type}\n`;
  }

  add(labels: string, value: number, suffix = ''): void {
    this.#tail += `${this.name}${suffix}${labels} ${value}\n`;
    if (this.#tail.length > PART_LENGTH) this.#cut();
  }

  /** The text in parts, so that nobody has to wait for the whole; nothing of a family without samples. */
  parts(): Buffer[] {
    if (this.#tail !== '') this.#cut();
    return this.#parts.length === 0 ? [] : [Buffer.from(this.#head), ...this.#parts];
  }

  #cut(): void {
    this.#parts.push(Buffer.from(this.#tail));
    this.#tail = '';
  }
}
