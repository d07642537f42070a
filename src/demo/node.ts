/** The demo's node: `understudy run`, which also leaves when its parent is gone. */
import { failWith } from '../cli/output.ts';
import { runNode } from '../run.ts';

process.on('disconnect', () => process.kill(process.pid, 'SIGTERM'));

try {
  await runNode(process.argv[2] ?? '');
  process.exit(0);
} catch (error) {
  failWith(error);
}
