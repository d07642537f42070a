/** A configuration in which every key stands, each of its secrets with SECRET in it; files are those of `makeCertificates`. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const SECRET = 'SECRET';
const secret = (what: string) => `${SECRET}-of-${what}-0123456789abcdef`;

/** What the file names beside certificates. */
export const writeFilesOfEveryKey = (folder: string): void => {
  writeFileSync(join(folder, 'sorry.html'), '<p>Sorry. {id}');
  writeFileSync(join(folder, 'password'), secret('a-user-in-a-file'));
  writeFileSync(join(folder, 'token'), secret('the-api-in-a-file'));
};

const textTest = (value: string) => ({
  present: true,
  equals: [value],
  prefix: 'S',
  suffix: 'f',
  contains: '-',
  pattern: 'S',
});

const httpRules = [
  {
    when: {
      source: ['10.0.0.0/8', 'fd00::/8'],
      host: ['shop.example.com', '*.shop.example.com'],
      path: '/admin/**',
      pathPattern: '^/admin/[a-z]+$',
      method: ['GET', 'HEAD'],
      header: { 'X-Key': textTest(secret('a-header-condition')) },
      cookie: { session: textTest(secret('a-cookie-condition')) },
      query: { token: textTest(secret('a-query-condition')) },
      tls: true,
      clientCertificate: true,
      serverName: 'shop.example.com',
      localPort: 443,
      usable: { pool: 'web', atLeast: 1, below: 3 },
      rate: { key: 'header:X-Key', per: '1m', above: 100, entries: 1000 },
      not: { header: { Authorization: secret('a-negated-condition') } },
      any: [{ cookie: { a: secret('any') } }, { path: '/x' }],
      all: [{ query: { a: secret('all') } }],
    },
    use: 'api',
  },
  { setHeader: { 'X-Set': secret('setHeader') } },
  { addHeader: { 'X-Add': secret('addHeader') } },
  { removeHeader: ['X-Powered-By'] },
  { replaceHeader: { name: 'X-Old', pattern: secret('replaced'), with: secret('replacement') } },
  {
    response: {
      setHeader: { 'X-Set': secret('a-response-header') },
      addHeader: { 'X-Add': secret('an-added-response-header') },
      removeHeader: 'Server',
      replaceHeader: {
        name: 'X-Old',
        pattern: secret('replaced-in-response'),
        with: secret('replacement-in-response'),
      },
    },
  },
  { setPath: '/app{path}' },
  { replacePath: { pattern: '^/old/(.*)$', with: '/new/$1' } },
  { setQuery: { key: secret('setQuery') } },
  { setQuery: `key=${secret('the-whole-query')}` },
  { rateLimit: { key: 'cookie:session', rate: '10/s', burst: 20, status: 429, entries: 1000 } },
  { allow: { users: { ann: secret('a-user'), bob: { file: './password' } }, realm: 'shop' } },
  {
    when: { path: '/deny' },
    deny: {
      status: 451,
      body: secret('a-denial'),
      contentType: 'text/html',
      headers: { 'X-A': secret('a-denial-header') },
    },
  },
  { when: { path: '/tarpit' }, tarpit: { delay: '5s', status: 403 } },
  { when: { path: '/http' }, redirect: { scheme: 'https', status: 301 } },
  { when: { path: '/prefix' }, redirect: { prefix: 'https://shop.example.com' } },
  { when: { path: '/old' }, redirect: { location: '/new{query}' } },
  {
    when: { path: '/hello' },
    return: {
      status: 200,
      body: secret('an-answer'),
      contentType: 'text/plain',
      headers: { 'X-A': secret('an-answer-header') },
    },
  },
];

const terms = {
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.3',
  ciphers: 'ECDHE+AESGCM',
  cipherSuites: 'TLS_AES_128_GCM_SHA256',
  curves: 'X25519',
};

const log = {
  path: 'syslog://127.0.0.1:5514',
  format: 'httplog',
  only: 'errors',
  sample: 0.5,
  requestHeaders: ['User-Agent'],
  responseHeaders: ['Content-Type'],
  syslog: { format: 'rfc5424', facility: 'local1', tag: 'shop' },
};

const frontends = {
  shop: {
    mode: 'http',
    bind: [
      { address: '127.0.0.1:8080', proxyProtocol: { from: ['10.0.0.0/8'], required: true } },
      { address: 'unix:/run/shop.sock', mode: '660', user: 'root', group: '0' },
      {
        address: '127.0.0.1:8443',
        tls: {
          certificates: ['./shop.pem', { chain: './api.crt', key: './api.key' }],
          strictSni: true,
          alpn: ['h2', 'http/1.1'],
          ...terms,
          tickets: false,
          clientCertificates: { ca: './authority.crt', verify: 'optional', crl: './authority.crl' },
        },
      },
    ],
    rules: httpRules,
    use: 'web',
    forwardedFor: 'replace',
    compression: {
      encodings: ['br', 'zstd', 'gzip'],
      types: ['text/*', '+json'],
      minSize: '2KiB',
      levels: { gzip: 2, br: 4, zstd: 2 },
    },
    errorPages: { 503: './sorry.html' },
    http2: { maxConcurrentStreams: 50, initialWindow: '128KiB', maxHeaderList: '32KiB' },
    log,
    maxConnections: 1000,
    timeouts: { client: '30s', httpRequest: '5s', keepAlive: '20s' },
    drain: '10s',
  },
  mail: {
    mode: 'tcp',
    bind: ['127.0.0.1:2525'],
    rules: [
      { when: { source: '192.0.2.0/24' }, reject: true },
      { when: { source: '10.0.0.0/8' }, accept: true },
    ],
    use: 'mail',
    log: false,
  },
};

const backends = {
  web: {
    mode: 'http',
    balance: { type: 'uri', whole: true, depth: 2, length: 100, boundedLoad: 1.5 },
    sticky: {
      cookie: {
        name: 'SRV',
        httpOnly: true,
        secure: true,
        sameSite: 'none',
        domain: 'example.com',
        noCache: true,
        maxIdle: '30m',
        maxLife: '8h',
        key: secret('a-sticky-cookie'),
      },
    },
    maxQueue: 100,
    check: {
      ...{ type: 'https', interval: '2s', fastInterval: '1s', downInterval: '5s', timeout: '1s', rise: 2, fall: 3 },
      ...{ jitter: 0.1, port: 8443, method: 'GET', path: '/healthz', host: 'shop.example.com', expect: '200-299' },
      ...{ headers: { Authorization: secret('a-check') }, body: 'ok', bodyPattern: 'o.', serverName: 'shop' },
      ...{ verify: true, ca: './authority.crt' },
    },
    servers: [
      {
        ...{ name: 'web1', address: '10.0.0.1:443', weight: 2, maxConnections: 100, maxQueue: 10, cookie: 'a' },
        tls: {
          verify: true,
          ca: './authority.crt',
          crl: './authority.crl',
          serverName: 'web1',
          certificate: './jo.pem',
          ...terms,
        },
        sendProxy: 'v2',
      },
      { name: 'web2', address: '10.0.0.2:443', backup: true },
      { name: 'web3', address: '10.0.0.3:443', disabled: true },
    ],
    checks: { share: 'quorum', divide: true, by: 2 },
    allBackups: true,
    quorum: 1,
    hysteresis: 1,
    initially: 'up',
    slowStart: '10s',
    onMarkedDown: 'shutdownSessions',
    observe: { layer: 'layer7', errorLimit: 5, onError: 'markDown' },
    outliers: {
      layer: 'layer4',
      consecutiveErrors: 5,
      errorRate: { above: '50 %', minimumRequests: 10, interval: '5s' },
      baseEjection: '10s',
      maxEjection: '60s',
      maxEjected: '30%',
    },
    panic: 20,
    tls: true,
    sendProxy: 'v1',
    errorPages: { 502: './sorry.html' },
    retries: 2,
    timeouts: { connect: '1s', server: '10s', queue: '2s', tunnel: '10m' },
  },
  api: {
    balance: { type: 'random', draws: 3 },
    sticky: { table: 'source', expire: '1h', size: 1000 },
    check: { type: 'tcp', send: secret('a-tcp-check'), expect: 'pong', expectPattern: 'p' },
    servers: [{ name: 'api1', address: 'unix:/run/api.sock' }],
  },
  users: { balance: { type: 'header', name: 'X-User' }, servers: [{ name: 'u1', address: '10.0.0.5:80' }] },
  mail: {
    check: { type: 'script', command: ['/bin/true'] },
    servers: [{ name: 'm1', address: '10.0.0.6:25' }],
  },
};

const notify = { timeout: '5s', user: 'nobody' };
const program = ['/bin/true'];

const routers = {
  gateway: {
    ...{
      vrid: 51,
      interface: 'eth0',
      version: 3,
      priority: 150,
      advertise: '100ms',
      preempt: true,
      preemptDelay: '1s',
    },
    ...{ startDelay: '1s', transport: 'unicast', peers: ['10.9.0.12'], source: '10.9.0.11', port: 1112, minTtl: 254 },
    ...{ checksum: 'rfc9568', accept: true, virtualMac: true },
    addresses: [{ address: '10.9.0.100/24', interface: 'eth0', label: 'eth0:1' }],
    authentication: { type: 'hmac', keys: [{ id: 1, secret: secret('a-router').slice(0, 40) }] },
    announce: { repeat: 3, delay: '1s', refresh: '60s', refreshRepeat: 2 },
    track: [
      { interface: 'eth1', weight: 0, reverse: false },
      { pool: 'web', atLeast: 2, weight: -60 },
      { script: program, name: 'alive', timeout: '1s', user: 'nobody', interval: '1s', rise: 1, fall: 2 },
      { process: 'sshd', min: 1, max: 10 },
      { file: '/etc/hostname' },
      { sight: true, weight: -60 },
    ],
    notify: { command: program, master: program, backup: program, fault: program, stop: program, ...notify },
  },
  other: { vrid: 52, interface: 'eth0', priority: 150, preemptDelay: '1s', addresses: ['10.9.0.101/24'] },
  overNats: { vrid: 53, interface: 'eth0', transport: 'nats', onBusLoss: 'keep', addresses: ['10.9.0.102/24'] },
};

export const everyKey = {
  cluster: 'shop',
  node: 'lb1',
  shared: false,
  bus: {
    nats: {
      servers: ['tls://nats1.example.com:4222'],
      ...{ user: 'lb1', password: secret('the-bus') },
      tls: { ca: './authority.crt', certificate: './api.crt', key: './api.key' },
      ...{ replicas: 1, keep: '90d', maxSize: '10GiB', startWait: '3s' },
    },
  },
  journal: { path: './lb1.db', keep: '10d', maxSize: '1GiB' },
  api: { listen: '127.0.0.1:8404', token: secret('the-api') },
  workers: 2,
  log: { access: { ...log, path: 'syslog:///dev/log' } },
  frontends,
  backends,
  routers,
  syncGroups: { both: { routers: ['gateway', 'other'], notify } },
  notifyPipe: { path: './pipe', format: 'json' },
};
