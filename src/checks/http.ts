import { request as httpRequest, STATUS_CODES } from 'node:http';
import { request as httpsRequest } from 'node:https';
import type { CheckConfig } from '../config/schema.ts';
import { formatEndpoint } from '../config/units.ts';
import { agentFor } from './connect.ts';
import { errorText, failed, limit, passed } from './outcome.ts';
import type { Outcome, Probe } from './outcome.ts';
import { tlsOptions } from './tls.ts';

/** What of a body is looked at for `body` and `bodyPattern`. */
const MAX_BODY_BYTES = 256 * 1024;

/** Layer 7: a request of its own connection, judged by status and, where asked for, by body. */
export const probeHttp: Probe<Extract<CheckConfig, { type: 'http' | 'https' }>> = (
  target,
  check,
  timeoutMs,
  finish,
) => {
  const { address } = target;
  const isTls = check.type === 'https';
  const looksAtBody = check.body !== undefined || check.bodyPattern !== undefined;
  let layer: 'L4' | 'L6' | 'L7' = 'L4';
  const options = {
    ...(address.path === undefined ? { host: address.host, port: address.port } : { socketPath: address.path }),
    method: check.method,
    path: check.path,
    agent: agentFor(target, isTls),
    headers: {
      host: check.host ?? (address.path === undefined ? formatEndpoint(address) : address.host),
      'user-agent': 'understudy-check',
      connection: 'close',
      ...check.headers,
    },
  };
  const request = isTls ? httpsRequest({ ...options, ...tlsOptions(check, address.host) }) : httpRequest(options);
  const end = (outcome: Outcome) => {
    lift();
    request.destroy();
    finish(outcome);
  };
  const lift = limit(timeoutMs, () => {
    const what = layer === 'L4' ? 'no connection' : layer === 'L6' ? 'no handshake' : 'no complete answer';
    end(failed(`${layer}TOUT`, `${what} within ${timeoutMs} ms`));
  });
  request.once('socket', (socket) => {
    socket.once('connect', () => (layer = isTls ? 'L6' : 'L7'));
    socket.once('secureConnect', () => (layer = 'L7'));
  });
  request.on('error', (error) => {
    end(failed(layer === 'L4' ? 'L4CON' : `${layer}RSP`, errorText(error)));
  });
  request.once('response', (response) => {
    const status = response.statusCode ?? 0;
    const statusText = `${status} ${STATUS_CODES[status] ?? ''}`.trim();
    if (!check.expect.some(([low, high]) => status >= low && status <= high)) {
      end(failed('L7STS', statusText));
      return;
    }
    if (!looksAtBody) {
      end(passed('L7OK', statusText));
      return;
    }
    const chunks: Buffer[] = [];
    let bytes = 0;
    const judge = () => {
      const body = Buffer.concat(chunks).toString('utf8');
      const matches =
        (check.body === undefined || body.includes(check.body)) &&
        (check.bodyPattern === undefined || new RegExp(check.bodyPattern).test(body));
      end(
        matches ? passed('L7OK', statusText) : failed('L7RSP', `${statusText}, but the body is not the expected one`),
      );
    };
    response.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > MAX_BODY_BYTES) judge();
    });
    response.on('end', judge);
    response.on('error', (error) => end(failed('L7RSP', errorText(error))));
  });
  request.end();
  return () => {
    lift();
    request.destroy();
  };
};
