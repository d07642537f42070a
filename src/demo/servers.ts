/** The demo's servers: small, real, each a process of its own. Started as `servers.ts http|tcp NAME PORT`. */
import { createServer as createHttpServer } from 'node:http';
import { createServer as createTcpServer } from 'node:net';

const [kind, name, port] = process.argv.slice(2);

const server =
  kind === 'tcp'
    ? createTcpServer((socket) => {
        socket.on('error', () => socket.destroy());
        socket.pipe(socket);
      })
    : createHttpServer((request, response) => {
        if (request.url === '/healthz') {
          response.end('ok\n');
          return;
        }
        response.setHeader('content-type', 'text/plain');
        response.end(`Hello from ${name}.\n`);
      });

server.listen(Number(port), '127.0.0.1', () => process.send?.('listening'));
// Without its parent it has no purpose.
process.on('disconnect', () => process.exit(0));
