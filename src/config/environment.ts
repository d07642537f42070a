/** `${NAME}` and `${NAME:-default}` in every text of the file. */
import { isPair, isScalar, isSeq, visit } from 'yaml';
import type { Document } from 'yaml';
import type { Path } from './raw.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** The environment knows texts only: where a number, or true and false, are wanted, and only there, it is read as one. */
export const substituteEnvironment = (
  document: Document,
  environment: Environment,
  typesAt: (path: Path) => Set<string>,
  report: (path: Path, variable: string) => void,
): void => {
  visit(document, {
    Scalar(key, node, ancestors) {
      if (key === 'key' || typeof node.value !== 'string' || !node.value.includes('${')) return;
      const path = pathOf(ancestors, key);
      let missing = false;
      const text = node.value.replaceAll(
        /\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}/g,
        (whole, variable: string, fallback?: string) => {
          const value = environment[variable] ?? fallback;
          if (value !== undefined) return value;
          missing = true;
          report(path, variable);
          return whole;
        },
      );
      node.value = missing || node.type !== 'PLAIN' ? text : asWanted(text, typesAt(path));
    },
  });
};

const pathOf = (ancestors: readonly unknown[], key: unknown): Path => {
  const path: Path = [];
  for (const [index, ancestor] of ancestors.entries()) {
    const child: unknown = ancestors[index + 1];
    if (isPair(ancestor) && isScalar(ancestor.key)) path.push(String(ancestor.key.value));
    if (isSeq(ancestor)) path.push(child === undefined ? Number(key) : ancestor.items.indexOf(child));
  }
  return path;
};

const asWanted = (text: string, types: Set<string>): unknown => {
  if (types.has('string')) return text;
  if (types.has('number') && /^-?\d+(?:\.\d+)?$/.test(text)) return Number(text);
  if (types.has('boolean') && /^(?:true|false)$/.test(text)) return text === 'true';
  return text;
};
