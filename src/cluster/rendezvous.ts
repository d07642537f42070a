/**
 * Who checks which server: every node computes it alike from who is here, with nobody to ask. Each node has a score for
 * each server, and the highest have it, so that a node that leaves or joins moves its own share of the servers only.
 */
import { hashText } from '../proxy/hash.ts';

/** Sorted by name. All of them where there are no more than that. */
export const checkersOf = (server: string, nodes: readonly string[], by: number): string[] =>
  nodes
    .map((node) => ({ node, score: hashText(`${node}\n${server}`) }))
    .sort((a, b) => b.score - a.score || (a.node < b.node ? -1 : 1))
    .slice(0, by)
    .map(({ node }) => node)
    .sort();
