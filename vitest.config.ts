import { defineConfig } from 'vitest/config';

/** Whole clusters and networks, service managers, containers, floods: ten minutes and more, in `npm run test:slow`. */
const slow = [
  'test/{clusterCommands,commandService,hostileFloods,logShipping,members,sharedConfig,sharedHealthNodes,vrrpNats}.test.ts',
  'test/deploy*.test.ts',
  'test/lab/{authentication,busy,cluster*,examples,interopElections,lab,labCluster,natsAway,quorum,syncGroups,trackers}.test.ts',
];

const common = {
  pool: 'forks',
  // Ends what hangs; how fast something is, is for a benchmark to say.
  testTimeout: 120_000,
  hookTimeout: 120_000,
} as const;

export default defineConfig({
  test: {
    // Two cores: tests that start nodes and servers of their own would only slow each other down with more.
    maxWorkers: 2,
    projects: [
      { test: { ...common, name: 'usual', include: ['test/**/*.test.ts'], exclude: slow } },
      { test: { ...common, name: 'slow', include: slow, testTimeout: 180_000, hookTimeout: 180_000 } },
    ],
  },
});
