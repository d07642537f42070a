import type { RequestFacts } from '../src/proxy/facts.ts';

/** A plain request, for tests that care about little of it. */
export const requestFacts = (more: Partial<RequestFacts> = {}): RequestFacts => ({
  source: '10.0.0.1',
  localAddress: '10.9.0.100',
  localPort: 80,
  scheme: 'http',
  isTls: false,
  tls: null,
  serverName: null,
  method: 'GET',
  host: 'example.com',
  path: '/',
  query: '',
  header: () => null,
  cookie: () => null,
  ...more,
});
