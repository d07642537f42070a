/** The file as YAML gives it: checks of the whole look at that, so that they tell their problems beside the schema's. */

/** `['frontends', 'shop', 'bind', 0]` */
export type Path = (string | number)[];

/** `atKey`: where the key stands, instead of its value. */
export type Report = (path: Path, message: string, atKey?: boolean) => void;

export type Raw = Record<string, unknown>;

/** A path within a part of the file → the path in the file. */
export type At = (...path: Path) => Path;

/** Empty for what is no map: the schema tells of that. */
export const asMap = (value: unknown): Raw =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Raw) : {};

/** Empty for what is no list. */
export const asList = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);

export const under =
  (...start: Path): At =>
  (...path) => [...start, ...path];
