import type { CheckConfig } from '../config/schema.ts';
import { connectTo } from './connect.ts';
import { errorText, failed, limit, passed } from './outcome.ts';
import type { Probe } from './outcome.ts';

/** What of an answer is looked at: a banner or a status line is in its first bytes. */
const MAX_ANSWER_BYTES = 64 * 1024;

/** Layer 4: a connection; with `send` or `expect`, what the server says on it. */
export const probeTcp: Probe<Extract<CheckConfig, { type: 'tcp' }>> = (target, check, timeoutMs, finish) => {
  const talks = check.expect !== undefined || check.expectPattern !== undefined;
  const pattern = check.expectPattern === undefined ? null : new RegExp(check.expectPattern);
  let connected = false;
  let answer = '';
  const socket = connectTo(target);
  const end = (outcome: Parameters<typeof finish>[0]) => {
    lift();
    // Reset instead of close, as HAProxy does: thousands of checks would fill the port range with TIME_WAIT.
    if (target.address.path === undefined) socket.resetAndDestroy();
    else socket.destroy();
    finish(outcome);
  };
  const lift = limit(timeoutMs, () => {
    end(
      connected
        ? failed('L7TOUT', `no matching answer within ${timeoutMs} ms`)
        : failed('L4TOUT', `no connection within ${timeoutMs} ms`),
    );
  });
  socket.once('connect', () => {
    connected = true;
    if (!talks && check.send === undefined) {
      end(passed('L4OK'));
      return;
    }
    if (check.send !== undefined) socket.write(check.send);
    if (!talks) end(passed('L4OK'));
  });
  socket.on('error', (error) => end(failed(connected ? 'L7RSP' : 'L4CON', errorText(error))));
  if (talks) {
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1');
      const found = (check.expect === undefined || answer.includes(check.expect)) && (!pattern || pattern.test(answer));
      if (found) end(passed('L7OK'));
      else if (answer.length > MAX_ANSWER_BYTES) end(failed('L7RSP', 'the answer is not the expected one'));
    });
    socket.on('end', () => end(failed('L7RSP', 'connection closed before the expected answer')));
  }
  return () => {
    lift();
    socket.destroy();
  };
};
