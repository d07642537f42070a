/** What the access log's thread counts, in memory shared with the control plane: Float64. */
export const WRITTEN = 0;
export const LOST = 1;
export const COUNTERS = 2;
