/** What a client is told when we answer ourselves. Made once; the connection is closed after each. */

const REASONS: Record<number, string> = {
  400: 'Bad Request',
  405: 'Method Not Allowed',
  408: 'Request Timeout',
  414: 'URI Too Long',
  431: 'Request Header Fields Too Large',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
  505: 'HTTP Version Not Supported',
};

const pages = new Map<number, Buffer>();

export const errorPage = (status: number): Buffer => {
  let page = pages.get(status);
  if (!page) {
    const reason = REASONS[status] ?? 'Error';
    const body = `${status} ${reason}\n`;
    const retryAfter = status === 503 ? 'Retry-After: 1\r\n' : '';
    page = Buffer.from(
      `HTTP/1.1 ${status} ${reason}\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\n` +
        `Cache-Control: no-store\r\n${retryAfter}Connection: close\r\n\r\n${body}`,
    );
    pages.set(status, page);
  }
  return page;
};
