import { onTestFinished } from 'vitest';
import type { TestContext } from 'vitest';
import { Lab } from '../../deploy/lab/lab.ts';

/**
 * A lab that ends with its test. If the test fails, it shows what every program in it has said. Tests that run side by
 * side have to give the `onTestFinished` of their own context.
 */
export const labForTest = async (onFinished: TestContext['onTestFinished'] = onTestFinished): Promise<Lab> => {
  const lab = await Lab.create();
  onFinished(async ({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${lab.log()}\n`);
    await lab.destroy();
  });
  return lab;
};
