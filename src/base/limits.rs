//! Every bound of the program, in one place. A limit is checked before anything is allocated (T8, T9).

/// Longest `.dx` file that is written or read, in bytes.
pub const DX_FILE_BYTES_MAX: u64 = 64 << 30;
/// Most frames of a `.dx` file: what a reader keeps of each stays in memory.
pub const DX_FRAMES_MAX: u32 = 1 << 20;
/// Longest frame of a `.dx` file, uncompressed, in bytes. A larger row or unit spans frames.
pub const DX_FRAME_RAW_BYTES_MAX: usize = 64 << 20;
/// A writer closes a frame at this many uncompressed bytes.
pub const DX_FRAME_RAW_BYTES_GOAL: usize = 1 << 20;
/// A reader hands out a larger unit in parts of about this many bytes of rows.
pub const DX_PART_BYTES_GOAL: usize = 4 << 20;
/// Longest single record of a frame, in bytes (one row with its values).
pub const DX_RECORD_BYTES_MAX: usize = 48 << 20;
/// Most columns that one row may have (SQLite's own limit is 2,000; the log holds two images and four fields).
pub const COLUMNS_MAX: usize = 990;
/// Most bytes of one value.
pub const VALUE_BYTES_MAX: usize = 32 << 20;

/// Most bytes of the values of one row: with its key again and its scope keys it is one record.
pub const ROW_BYTES_MAX: usize = 40 << 20;

/// Upload: most bytes of one change: its key, and the row before, base, after and whole. It may take several records.
pub const UPLOAD_CHANGE_BYTES_MAX: usize = 200 << 20;
/// Upload: a change of more bytes is cut into records of so many.
pub const UPLOAD_PIECE_BYTES: usize = 16 << 20;
/// Upload: a file of several units ends before it has more bytes of changes. A larger unit is a file of its own.
pub const UPLOAD_FILE_BYTES_GOAL: u64 = 4 << 20;
/// Upload: most bytes that the changes of one unit take in memory; the Merger holds a unit whole.
pub const UPLOAD_UNIT_BYTES_MAX: u64 = 1 << 30;

/// Cut: a larger value is not kept in the list of conflicts, so its row is not put back. Text of JSON has twice as many bytes.
pub const LISTED_VALUE_BYTES_MAX: usize = 64 << 20;
/// Cut: how often rows are put back anew without those that a constraint kept out.
pub const PUT_BACK_PASSES_MAX: usize = 8;

/// Most bytes of a confirm: of conflicts beyond it the node is told where they are listed.
pub const CONFIRM_BYTES_MAX: usize = 32 << 20;
/// Finished units of a node that its extract or its reset tells of, newest first. A node that has not heard
/// of an older one keeps it pending.
pub const FINISHED_UNITS_TOLD_MAX: usize = 10_000;

/// Comparisons with the server database that are remembered for people.
pub const RECONCILED_KEPT_MAX: u32 = 1_000;

/// Transaction Processor: a unit that touches more rows is taken in chunks, by way of scratch files.
pub const UNIT_TOUCHED_ROWS_MAX: usize = 50_000;
/// Transaction Processor: a unit whose rows or keys have more bytes is taken in chunks.
pub const UNIT_ROW_BYTES_MAX: usize = 16 << 20;
/// Rows of one chunk of a large unit.
pub const UNIT_CHUNK_ROWS: usize = 5_000;
/// Bytes of rows after which a chunk of a large unit ends.
pub const UNIT_CHUNK_BYTES: usize = 4 << 20;
/// Rows that one chunk, or a unit in memory, may reach along the rules.
pub const UNIT_REACHED_ROWS_MAX: usize = 50_000;

/// Router: a round is closed after the unit with which some node reaches this many operations.
pub const ROUTER_FILE_OPERATIONS_GOAL: u64 = 5_000;
/// Router: a round is closed after the unit with which its frames reach this many bytes.
pub const ROUTER_ROUND_BYTES_GOAL: usize = 16 << 20;
/// Router: from this many bytes of operations on, what was collected of a unit that has not ended goes to disk.
pub const ROUTER_HELD_BYTES_MAX: usize = 24 << 20;
/// Router: frames for a group of nodes are shared from this many bytes on; smaller ones are copied to each node.
pub const ROUTER_SHARED_FRAME_BYTES_MIN: usize = 2 << 10;

/// Router: the files of a round are made by several threads, each of which makes at least this many.
pub const ROUTER_FILES_PER_THREAD_MIN: usize = 16;

/// Merger: conflicts that a confirm lists; all of them stand in the server database.
pub const CONFIRM_CONFLICTS_MAX: usize = 1_000;
/// Merger: bytes of values of conflicts that a confirm carries; a value beyond is left out.
pub const CONFIRM_VALUE_BYTES_MAX: usize = 1 << 20;
/// Merger: longest reason of a refusal, in characters.
pub const MERGE_REASON_CHARACTERS_MAX: usize = 2_000;
/// Merger: most units of one node before the next node has its turn.
pub const MERGE_TURN_UNITS_MAX: usize = 64;
/// Merger: a unit of so many changes is shown as `partial` while it is executed.
pub const MERGE_LARGE_CHANGES: usize = 1_000;

/// Purge: most nodes looked at in one step.
pub const PURGE_NODES_PER_STEP: usize = 64;
/// Purge: most files of one queue deleted, or looked for, in one step.
pub const PURGE_FILES_PER_STEP: usize = 256;

/// Longest control message of a session, in bytes.
pub const SESSION_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of file content in one session message.
pub const SESSION_CHUNK_BYTES: usize = 256 << 10;
/// Bytes of file content in one message of an upload. Small: any node that was let in may claim a frame of it.
pub const UPLOAD_CHUNK_BYTES: usize = 64 << 10;
/// Bytes of a file that are sent in one message, either way; a reader takes more. A message that a cut line tears off comes again whole, so on
/// a line that is cut every few seconds nothing would ever arrive in large ones (16 KiB are two seconds at 64 kbit/s).
pub const PIECE_SENT_BYTES: usize = 16 << 10;
/// Longest time that a node may ask the server to wait until its units are merged, in seconds.
pub const AWAIT_SECONDS_MAX: u32 = 3_600;
/// Uploaded files of one node that `sessions.db` remembers beyond the last one that is merged.
pub const UPLOADS_REMEMBERED_MAX: u64 = 1_000;
/// Units that the server names with their hashes when a node calls, at most.
pub const UPLOAD_UNITS_NAMED_MAX: usize = 10_000;
/// Most files named in one offer.
pub const SESSION_OFFER_FILES_MAX: usize = 1_000;
/// Below so many files that can still be made, routing pauses.
pub const DISK_FREE_FILES_MIN: u64 = 128;
/// Most bytes that are set aside for acknowledgements and administration on a full disk.
pub const DISK_RESERVE_BYTES_MAX: u64 = 8 << 20;

/// File handles that the stages of the service need beside those of sessions: databases with their WAL, files of a round.
pub const HANDLES_RESERVED: u64 = 56;
/// File handles of one session: its socket and the file that is being sent.
pub const HANDLES_PER_SESSION: u64 = 2;
/// Most sessions at once from one address.
pub const SESSIONS_PER_ADDRESS_MAX: usize = 256;

/// Most sessions at once in one process.
pub const SESSIONS_MAX: usize = 512;

/// Client: rows after which an apply slice commits, at the next unit end.
pub const APPLY_SLICE_ROWS: u64 = 1_000;

/// Client: pages in the WAL at which a checkpoint writes them back. Random updates are limited by the pages that checkpoints write
/// again and again: a long WAL makes apply 2 to 5 times faster.
pub const APPLY_WAL_PAGES: i64 = 40_000;

/// Client: a unit of more operations is staged beside the database and applied by few statements.
pub const STAGE_UNIT_ROWS: u64 = 10_000;
/// Client: so is one of more bytes.
pub const STAGE_UNIT_BYTES: u64 = 8 << 20;
/// Client: operations that are staged by one commit.
pub const STAGE_COMMIT_ROWS: u64 = 5_000;

/// Most key spaces (rule paths) that a definition may compile to.
pub const RULE_PATHS_MAX: usize = 4_096;
/// `explain`: most rows that are read on the way of one rule; beyond it the scope index alone decides.
pub const EXPLAIN_ROWS_MAX: usize = 10_000;
/// `explain`: most files of one queue that are searched for a row, newest first.
pub const EXPLAIN_FILES_MAX: usize = 10_000;
/// `explain`: most rules that are followed into each other, e.g. a referenced row of a referenced row.
pub const EXPLAIN_DEPTH_MAX: usize = 16;

/// `verify`: most buckets over which the keys of a table are spread, and most that one answer lists.
pub const VERIFY_BUCKETS_MAX: usize = 1_024;
/// `verify`: most rows of one table that one answer lists, so that it fits into a message from a node.
pub const VERIFY_FOUND_MAX: usize = 100;
/// `verify`: most answers that a local database keeps.
pub const VERIFY_KEPT_MAX: i64 = 1_000;

/// Most hops of one rule path.
pub const RULE_HOPS_MAX: usize = 8;

/// Rights of an upload: most rows that may go or change along with one delete or changed key.
pub const RIGHTS_CASCADE_ROWS_MAX: usize = 100_000;
/// Rights of an upload: so far back, in rows of the log, it is looked whether the node once saw a row.
pub const RIGHTS_LOG_ROWS_MAX: i64 = 200_000;

/// Size at which a letter on a carrier goes on in another part, where nothing else is said.
pub const LETTER_PART_BYTES: u64 = 16 << 20;
/// Smallest size of a part that may be set.
pub const LETTER_PART_BYTES_MIN: u64 = 512 << 10;
/// Largest size of a part that may be set: a part is held in memory.
pub const LETTER_PART_BYTES_MAX: u64 = 64 << 20;
