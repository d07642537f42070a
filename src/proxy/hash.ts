/** Hashes that spread load: quick, the same on every node, no protection against whoever looks for collisions. */

/** The finish of MurmurHash3: every bit of the input moves half of the bits of the output. 32 bits, signed. */
export const mix = (value: number): number => {
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return value ^ (value >>> 16);
};

/** FNV-1a over UTF-16 units with a finish, as 32 bits, signed; another seed gives another function. */
export const hashText = (text: string, seed = 0): number => {
  let value = 0x811c9dc5 ^ seed;
  for (let index = 0; index < text.length; index++) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193);
  return mix(value);
};
