/** What commands print: facts on standard output, everything else on standard error. */
import { messageOf, UnderstudyError } from '../errors.ts';

export const print = (text: string): void => {
  process.stdout.write(`${text}\n`);
};

export const printJson = (value: unknown): void => print(JSON.stringify(value, null, 2));

export const warn = (text: string): void => {
  process.stderr.write(`${text}\n`);
};

/** Rows in columns of equal width, two spaces apart, the last one as it comes. */
export const table = (head: string[], rows: string[][]): string => {
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => (row[column] ?? '').length)));
  const line = (cells: string[]) =>
    cells
      .map((cell, column) => (column === cells.length - 1 ? cell : cell.padEnd(widths[column]!)))
      .join('  ')
      .trimEnd();
  return [line(head), ...rows.map(line)].join('\n');
};

const styled = (code: number) => (text: string) =>
  process.stdout.isTTY && process.env['NO_COLOR'] === undefined ? `\u001b[${code}m${text}\u001b[0m` : text;

export const bold = styled(1);
export const dim = styled(2);
export const red = styled(31);
export const green = styled(32);
export const yellow = styled(33);

/** Ends the command with an error's own exit status; anything unforeseen is ours and says where it came from. */
export const failWith = (error: unknown): never => {
  if (error instanceof UnderstudyError) {
    warn(`understudy: ${error.message}`);
    process.exit(error.exitStatus);
  }
  warn(`understudy: unforeseen trouble, please report it: ${error instanceof Error ? error.stack : messageOf(error)}`);
  process.exit(3);
};

/** Long work on a terminal: one line that is rewritten. Elsewhere nothing. */
export const progress = (text: string): void => {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`);
};
