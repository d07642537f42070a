/**
 * The client of the fail-over benchmark: `failoverClient.ts HOST PORT PERIOD_MS TIMEOUT_MS`. Every period it begins an
 * attempt (a connection, and an HTTP request on it), whatever became of the ones before. When one has ended it prints a
 * line: when it began (milliseconds since 1970), whether it was connected, whether it was answered with 200.
 */
import { connect } from 'node:net';
import { nowMs } from '../../deploy/lab/process.ts';

const [host, port, periodMs, timeoutMs] = process.argv.slice(2) as [string, string, string, string];
const REQUEST = `GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`;

const attempt = (): void => {
  const beganMs = nowMs();
  let isConnected = false;
  let hasEnded = false;
  const socket = connect({ host, port: Number(port) });
  const end = (isAnswered: boolean) => {
    if (hasEnded) return;
    hasEnded = true;
    clearTimeout(timer);
    // With a reset: thousands of connections in TIME_WAIT would use up the ports.
    if (isConnected) socket.resetAndDestroy();
    else socket.destroy();
    process.stdout.write(`${beganMs} ${Number(isConnected)} ${Number(isAnswered)}\n`);
  };
  const timer = setTimeout(end, Number(timeoutMs), false);
  socket.once('connect', () => {
    isConnected = true;
    socket.write(REQUEST);
  });
  socket.once('data', (head: Buffer) => end(head.toString('latin1').startsWith('HTTP/1.1 200 ')));
  socket.once('error', () => end(false));
  socket.once('close', () => end(false));
};

let next = performance.now();
const schedule = (): void => {
  attempt();
  const at = performance.now();
  next = Math.max(next + Number(periodMs), at);
  setTimeout(schedule, next - at);
};
schedule();
