/** Looks into the schema: what it has at a path, and which keys it knows there. */
import type { z } from 'zod';
import type { Path } from './raw.ts';

type Definition = {
  type: string;
  shape?: Record<string, unknown>;
  innerType?: unknown;
  in?: unknown;
  options?: unknown[];
  valueType?: unknown;
  element?: unknown;
  values?: unknown[];
};

const defOf = (node: unknown): Definition => (node as { def: Definition }).def;
const shapeOf = (node: unknown): Record<string, unknown> => defOf(node).shape ?? {};

export const valueAt = (raw: unknown, path: Path): unknown =>
  path.reduce<unknown>((value, part) => (isMapOrList(value) ? own(value, part) : undefined), raw);

const isMapOrList = (value: unknown): value is object => typeof value === 'object' && value !== null;

/** JavaScript knows words such as `constructor` in every object; a file has only what stands in it. */
const own = (value: object, key: string | number): unknown =>
  Object.hasOwn(value, key) ? (value as Record<string | number, unknown>)[key] : undefined;

/** The types that a value at a path may have: `string`, `number`, `object`, … */
export const typesAt = (root: z.ZodType, path: Path): Set<string> =>
  new Set(nodesAt(root, path).map((node) => defOf(node).type));

/** The keys that the schema knows at a path; of a union, those of the form that the value has. */
export const keysAt = (root: z.ZodType, path: Path, raw: unknown): string[] => {
  const value = valueAt(raw, path);
  const objects = nodesAt(root, path).filter((node) => defOf(node).type === 'object');
  const type = (value as { type?: unknown } | null)?.type;
  const ofType = objects.filter((node) => {
    const { type: discriminator } = shapeOf(node);
    return discriminator && defOf(discriminator).values?.includes(type);
  });
  return [...new Set((ofType.length > 0 ? ofType : objects).flatMap((node) => Object.keys(shapeOf(node))))];
};

/** The schema's nodes at a path, those of all forms that a value there may have. */
const nodesAt = (root: z.ZodType, path: Path): unknown[] => {
  let nodes = unwrap(root);
  for (const part of path) nodes = nodes.flatMap((node) => childOf(node, part)).flatMap(unwrap);
  return nodes;
};

const unwrap = (node: unknown): unknown[] => {
  const definition = defOf(node);
  if (definition.innerType) return unwrap(definition.innerType);
  if (definition.type === 'pipe') return unwrap(definition.in);
  if (definition.options) return definition.options.flatMap(unwrap);
  return [node];
};

const childOf = (node: unknown, part: string | number): unknown[] => {
  const definition = defOf(node);
  const child =
    definition.type === 'object'
      ? own(definition.shape ?? {}, part)
      : definition.type === 'array'
        ? definition.element
        : definition.valueType;
  return child ? [child] : [];
};
