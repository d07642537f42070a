import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { openssl, takeErrors } from '../src/net/openssl.ts';
import { tryCertificate, tryStore } from '../src/proxy/certificates.ts';
import { tryTerms } from '../src/proxy/tlsContext.ts';
import { has } from './packages.ts';
import { makeCertificates, serverModel } from './tlsHelpers.ts';

test('every function that is bound is in Node’s binary', () => {
  for (const [name, bound] of Object.entries(openssl())) expect(bound, name).toBeTypeOf('function');
});

test('a thread that is terminated while it reads what OpenSSL told ends alone', () => {
  const { status, signal, stderr } = spawnSync(process.execPath, [join(import.meta.dirname, 'readingThread.ts')]);
  expect({ status, signal, stderr: stderr.toString() }).toEqual({ status: 0, signal: null, stderr: '' });
});

test('errors are taken from the queue in their order, each once', () => {
  for (const list of ['none', 'neither']) {
    const context = openssl().SSL_CTX_new(openssl().TLS_server_method());
    expect(openssl().SSL_CTX_set_cipher_list(context, list)).toBe(0);
    openssl().SSL_CTX_free(context);
  }
  expect(takeErrors().map(({ text }) => text)).toEqual(['no cipher match', 'no cipher match']);
  expect(takeErrors()).toEqual([]);
});

test('what is refused leaves no error behind', () => {
  expect(() => tryCertificate('none')).toThrow('there is no certificate in it');
  expect(() => tryStore('none', null)).toThrow('there is no certificate in it');
  expect(() => tryStore(null, 'none')).toThrow('there is no revocation list in it');
  expect(() => tryTerms({ ciphers: 'none' })).toThrow('ciphers: no cipher match');
  expect(takeErrors()).toEqual([]);
});

test.skipIf(!has('openssl'))('a certificate needs its own key, without a passphrase', () => {
  const files = makeCertificates();
  onTestFinished(() => files.remove());
  const shop = files.read('shop.crt');
  expect(() => tryCertificate(files.read('shop.pem'))).not.toThrow();
  expect(() => tryCertificate(shop)).toThrow('there is no key in it');
  expect(() => tryCertificate(shop + files.read('api.key'))).toThrow("the key in it is not the certificate's");
  expect(() => tryCertificate(shop + files.read('rsa.key'))).toThrow("the key in it is not the certificate's");
  expect(() => tryCertificate(shop + files.read('locked.key'))).toThrow('the key in it needs a passphrase');
  const broken = files.read('shop.pem').replace(/MII/, 'MIX');
  expect(() => tryCertificate(broken)).toThrow(Error);
  expect(takeErrors()).toEqual([]);
});

test.skipIf(!has('openssl'))(
  'several threads choose protocols at the same time, each by its own callback',
  async () => {
    const files = makeCertificates();
    onTestFinished(() => files.remove());
    const model = serverModel([files.read('shop.pem')], { alpn: ['h2', 'http/1.1'] });
    const results = await Promise.all(
      Array.from({ length: 3 }, async () => {
        const worker = new Worker(join(import.meta.dirname, 'tlsThread.ts'), {
          workerData: { model, connections: 20 },
        });
        onTestFinished(async () => void (await worker.terminate()));
        const [chosen] = (await once(worker, 'message')) as [string[]];
        return chosen;
      }),
    );
    const expected = Array.from({ length: 20 }, (_, index) => (index % 2 === 0 ? 'h2' : 'http/1.1'));
    expect(results).toEqual([expected, expected, expected]);
  },
);
