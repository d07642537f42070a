/** Parameters of a query, as forms encode them (application/x-www-form-urlencoded). Values are bytes in a string. */

/** One byte a character; `+` is a space. */
export const decodedParameter = (text: string): string =>
  text.includes('%') || text.includes('+')
    ? text
        .replaceAll('+', ' ')
        .replaceAll(/%([\da-fA-F]{2})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)))
    : text;

/** Calls `visit` with each value of the parameter, as it was sent, until that is content. */
export const someParameter = (query: string, name: string, visit: (value: string) => boolean): boolean => {
  for (let start = 0; start < query.length;) {
    const ampersand = query.indexOf('&', start);
    const end = ampersand < 0 ? query.length : ampersand;
    const equals = query.indexOf('=', start);
    const nameEnd = equals < 0 || equals > end ? end : equals;
    if (nameEnd > start && decodedParameter(query.slice(start, nameEnd)) === name) {
      if (visit(query.slice(Math.min(nameEnd + 1, end), end))) return true;
    }
    start = end + 1;
  }
  return false;
};

/** The first value of the parameter, as it was sent; null without. */
export const firstParameter = (query: string, name: string): string | null => {
  let first: string | null = null;
  someParameter(query, name, (value) => {
    first = value;
    return true;
  });
  return first;
};

/** The query without the parameter, however often it is there. */
export const withoutParameter = (query: string, name: string): string =>
  query === ''
    ? ''
    : query
        .split('&')
        .filter((pair) => decodedParameter(pair.split('=', 1)[0]!) !== name)
        .join('&');
