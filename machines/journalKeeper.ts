/**
 * Whether the journal can be written. A full or broken disk stops neither traffic nor elections: it is this state,
 * shown by `status` and `/healthz`, until the writer has got through again.
 */
import { setup } from 'xstate';

export type JournalKeeperEvent =
  | { type: 'journal.failed'; code: string; message: string }
  /** `lost` is how many records could not be kept until there was room. */
  | { type: 'journal.resumed'; lost: number }
  /** The file was unusable when the node started; it was set aside and a new one begun. */
  | { type: 'journal.replaced'; aside: string; message: string };

export const journalKeeper = setup({
  types: { events: {} as JournalKeeperEvent },
}).createMachine({
  id: 'journalKeeper',
  initial: 'writing',
  states: {
    writing: { on: { 'journal.failed': { target: 'failing' }, 'journal.replaced': {} } },
    failing: { on: { 'journal.failed': {}, 'journal.resumed': { target: 'writing' } } },
  },
});
