import { execFile } from 'node:child_process';

/** A capture of minutes, decoded. */
const MAX_OUTPUT_BYTES = 256 * 1024 ** 2;

/**
 * A program to its end.
 * @returns its standard output
 * @throws Error with what it wrote to standard error, if its exit status isn't 0
 */
export const output = (command: string, args: string[], input = '', env: Record<string, string> = {}) =>
  new Promise<string>((done, refuse) => {
    const options = { maxBuffer: MAX_OUTPUT_BYTES, env: { ...process.env, ...env } };
    const child = execFile(command, args, options, (error, stdout, stderr) => {
      if (error) refuse(new Error(`${command} ${args.join(' ')}: ${error.message}\n${stderr}`, { cause: error }));
      else done(stdout);
    });
    // A program that ends before it has read everything has a reason, which its exit status tells.
    child.stdin!.on('error', () => {});
    child.stdin!.end(input);
  });
