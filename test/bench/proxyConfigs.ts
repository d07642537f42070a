/**
 * The same proxy in three configuration languages: three rules (paths below /admin refused, api.example.com to another
 * backend, X-Forwarded-Proto set) and X-Forwarded-For; TLS 1.3 with one cipher; a TCP frontend; one for WebSocket.
 */
import type { Origin } from './proxyOrigin.ts';

/** Where a proxy listens, on 127.0.0.1. */
export type Ports = { http: number; https: number; tcp: number; webSocket: number };

export type ProxyConfig = { ports: Ports; origin: Origin; workers: number; folder: string; pem: string };

export const CIPHER_SUITE = 'TLS_AES_128_GCM_SHA256';
/** Some more than the idle clients of the memory row. */
const CONNECTIONS = 10_500;

export const understudyConfig = ({ ports, origin, workers, folder, pem }: ProxyConfig): string => `
node: bench
journal: { path: ${folder}/bench-${ports.http}.db }
api: { listen: "127.0.0.1:0" }
workers: ${workers}
frontends:
  http:
    mode: http
    bind:
      - "127.0.0.1:${ports.http}"
      - address: "127.0.0.1:${ports.https}"
        tls: { certificates: [${pem}], minVersion: TLSv1.3, cipherSuites: ${CIPHER_SUITE} }
    rules:
      - { when: { path: "/admin/**" }, deny: 403 }
      - { when: { host: api.example.com }, use: api }
      - { setHeader: { X-Forwarded-Proto: "{scheme}" } }
    use: web
    timeouts: { client: 1h, keepAlive: 1h }
  tcp:
    mode: tcp
    bind: ["127.0.0.1:${ports.tcp}"]
    use: raw
  webSocket:
    mode: http
    bind: ["127.0.0.1:${ports.webSocket}"]
    use: webSocket
backends:
  web: { servers: [{ name: s, address: "127.0.0.1:${origin.web}" }] }
  api: { servers: [{ name: s, address: "127.0.0.1:${origin.api}" }] }
  raw: { servers: [{ name: s, address: "127.0.0.1:${origin.web}" }] }
  webSocket: { servers: [{ name: s, address: "127.0.0.1:${origin.webSocket}" }] }
`;

export const haproxyConfig = ({ ports, origin, workers, pem }: ProxyConfig): string => `
global
  nbthread ${workers}
  maxconn ${CONNECTIONS}
  # It wants two descriptors for each connection, which idle clients don't take.
  no strict-limits
  ssl-default-bind-ciphersuites ${CIPHER_SUITE}
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  timeout http-request 10s
  timeout http-keep-alive 1h
  timeout connect 5s
frontend http
  bind 127.0.0.1:${ports.http} backlog 4096
  bind 127.0.0.1:${ports.https} backlog 4096 ssl crt ${pem} alpn h2,http/1.1
  http-request deny deny_status 403 if { path_beg /admin/ }
  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
  option forwardfor
  use_backend api if { hdr(host) -i api.example.com }
  default_backend web
frontend tcp
  mode tcp
  bind 127.0.0.1:${ports.tcp} backlog 4096
  default_backend raw
frontend webSocket
  bind 127.0.0.1:${ports.webSocket} backlog 4096
  option forwardfor
  default_backend webSocket
backend web
  server s 127.0.0.1:${origin.web}
backend api
  server s 127.0.0.1:${origin.api}
backend raw
  mode tcp
  server s 127.0.0.1:${origin.web}
backend webSocket
  server s 127.0.0.1:${origin.webSocket}
`;

/** `streamModule`: the file of nginx's TCP mode; null is none. */
export const nginxConfig = (config: ProxyConfig, streamModule: string | null): string => {
  const { ports, origin, workers, folder, pem } = config;
  const listen = `
    listen 127.0.0.1:${ports.http} backlog=4096 reuseport;
    listen 127.0.0.1:${ports.https} backlog=4096 reuseport ssl http2;`;
  const again = listen.replaceAll(' backlog=4096 reuseport', '');
  const name = `${folder}/nginx-${ports.http}`;
  const stream = `stream { server { listen 127.0.0.1:${ports.tcp} backlog=4096 reuseport; proxy_pass 127.0.0.1:${origin.web}; } }`;
  return `
${streamModule === null ? '' : `load_module ${streamModule};`}
user root;
daemon off;
worker_processes ${workers};
pid ${name}.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events { worker_connections ${CONNECTIONS * 2}; }
http {
  access_log off;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${name}-${kind};`).join(' ')}
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  ssl_certificate ${pem};
  ssl_certificate_key ${pem};
  ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites ${CIPHER_SUITE};
  proxy_http_version 1.1;
  proxy_max_temp_file_size 0;
  proxy_set_header Host $http_host;
  proxy_set_header Connection "";
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  upstream web { server 127.0.0.1:${origin.web}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s; }
  upstream api { server 127.0.0.1:${origin.api}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s; }
  server {${listen}
    server_name _;
    location /admin/ { return 403; }
    location / { proxy_pass http://web; }
  }
  server {${again}
    server_name api.example.com;
    location /admin/ { return 403; }
    location / { proxy_pass http://api; }
  }
  server {
    listen 127.0.0.1:${ports.webSocket} backlog=4096 reuseport;
    location / {
      proxy_pass http://127.0.0.1:${origin.webSocket};
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
    }
  }
}
${streamModule === null ? '' : stream}
`;
};
