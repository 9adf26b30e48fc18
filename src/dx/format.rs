//! Every byte constant of the `.dx` format; `docs/dx-format.md` explains each. All numbers are little-endian.

/// Version that is written, and the newest that is read.
pub const FORMAT_VERSION: u16 = 3;
/// Oldest version that is read.
pub const FORMAT_VERSION_OLDEST: u16 = 1;

/// First bytes of a file: not text, survives no line-end conversion, no 7-bit transport.
pub const MAGIC: [u8; 8] = [0x89, b'D', b'X', 0x0d, 0x0a, 0x1a, 0x0a, 0x00];

// Header: offset = previous offset + previous size.
/// Magic.
pub const AT_MAGIC: usize = 0;
/// Format version, u16.
pub const AT_VERSION: usize = AT_MAGIC + 8;
/// Direction, u8.
pub const AT_DIRECTION: usize = AT_VERSION + 2;
/// Length of the node's name, u8; 0 in a txnproc file.
pub const AT_NODE_LENGTH: usize = AT_DIRECTION + 1;
/// Node incarnation, u32.
pub const AT_INCARNATION: usize = AT_NODE_LENGTH + 1;
/// Server id, 16 bytes.
pub const AT_SERVER_ID: usize = AT_INCARNATION + 4;
/// Epoch, u32.
pub const AT_EPOCH: usize = AT_SERVER_ID + 16;
/// Definition revision, u32.
pub const AT_REVISION: usize = AT_EPOCH + 4;
/// Node name, 32 bytes, padded with zeros.
pub const AT_NODE: usize = AT_REVISION + 4;
/// File number, u64.
pub const AT_FILE_NO: usize = AT_NODE + 32;
/// First log position of the range, i64.
pub const AT_FIRST: usize = AT_FILE_NO + 8;
/// Last log position of the range, i64.
pub const AT_LAST: usize = AT_FIRST + 8;
/// Content hash of the previous file of the stream, 32 bytes.
pub const AT_PREVIOUS: usize = AT_LAST + 8;
/// Install id of the sending local database (upload only), 16 bytes.
pub const AT_INSTALL_ID: usize = AT_PREVIOUS + 32;
/// Unit that the sending local database had applied (upload only), i64.
pub const AT_APPLIED_UNIT: usize = AT_INSTALL_ID + 16;
/// Zeros, for later.
pub const AT_RESERVED: usize = AT_APPLIED_UNIT + 8;
/// CRC-32 of all header bytes before it, u32.
pub const AT_HEADER_CRC: usize = AT_RESERVED + 36;
/// Length of the header.
pub const HEADER_BYTES: usize = AT_HEADER_CRC + 4;

// Frame header.
/// First bytes of a frame.
pub const FRAME_MARK: [u8; 4] = *b"DXfr";
/// Offset of the method, u8, followed by three zeros.
pub const FRAME_AT_METHOD: usize = 4;
/// Offset of the uncompressed length, u32.
pub const FRAME_AT_RAW: usize = 8;
/// Offset of the length in the file, u32.
pub const FRAME_AT_STORED: usize = FRAME_AT_RAW + 4;
/// Offset of the CRC-32 of the frame header before it, u32.
pub const FRAME_AT_CRC: usize = FRAME_AT_STORED + 4;
/// Length of a frame header.
pub const FRAME_HEADER_BYTES: usize = FRAME_AT_CRC + 4;
/// Method: the bytes as they are.
pub const METHOD_STORED: u8 = 0;
/// Method: one zstd frame with content size and checksum.
pub const METHOD_ZSTD: u8 = 1;

/// A frame may expand to at most this many times its length in the file, plus [`FRAME_RATIO_GRACE_BYTES`]. A writer
/// stores a frame that zstd makes smaller than that.
pub const FRAME_RATIO_MAX: u64 = 250;
/// See [`FRAME_RATIO_MAX`].
pub const FRAME_RATIO_GRACE_BYTES: u64 = 4 << 10;
/// Largest zstd window accepted (log2 of bytes).
pub const ZSTD_WINDOW_LOG_MAX: u32 = 26;

// Trailer.
/// First bytes of the trailer.
pub const TRAILER_MARK: [u8; 4] = *b"DXtr";
/// Offset of the number of frames, u32.
pub const TRAILER_AT_FRAMES: usize = 4;
/// Offset of the number of units, u64.
pub const TRAILER_AT_UNITS: usize = TRAILER_AT_FRAMES + 4;
/// Offset of the number of operations or row events, u64.
pub const TRAILER_AT_OPERATIONS: usize = TRAILER_AT_UNITS + 8;
/// Offset of the number of uncompressed bytes of all frames, u64.
pub const TRAILER_AT_RAW: usize = TRAILER_AT_OPERATIONS + 8;
/// Offset of the content hash, 32 bytes.
pub const TRAILER_AT_CONTENT_HASH: usize = TRAILER_AT_RAW + 8;
/// Offset of the SHA-256 of all bytes of the file before it, 32 bytes.
pub const TRAILER_AT_SEAL: usize = TRAILER_AT_CONTENT_HASH + 32;
/// Length of the trailer.
pub const TRAILER_BYTES: usize = TRAILER_AT_SEAL + 32;

/// What the content hash begins with, so that it can never equal another hash of ours.
pub const CONTENT_HASH_DOMAIN: &[u8] = b"dockmaster dx content 1\0";
/// The header bytes that the content hash covers: all but magic, version, reserved bytes and CRC.
pub const CONTENT_HASH_HEADER: std::ops::Range<usize> = AT_DIRECTION..AT_RESERVED;

// Records: kind u8, length u32, payload.
/// Length of a record header.
pub const RECORD_HEADER_BYTES: usize = 5;
/// txnproc: a unit begins.
pub const RECORD_UNIT_BEGIN: u8 = 1;
/// txnproc: a table heading.
pub const RECORD_UNIT_TABLE: u8 = 2;
/// txnproc: a visibility key.
pub const RECORD_UNIT_KEY: u8 = 3;
/// txnproc: a node event.
pub const RECORD_UNIT_NODE: u8 = 4;
/// txnproc: a row event.
pub const RECORD_UNIT_ROW: u8 = 5;
/// txnproc, from version 2: a schema object that changed.
pub const RECORD_UNIT_SCHEMA: u8 = 6;
/// txnproc, from version 2: a mark of one node.
pub const RECORD_UNIT_MARK: u8 = 7;
/// txnproc, from version 2: an object of the whole schema, for nodes that begin anew.
pub const RECORD_UNIT_WHOLE_SCHEMA: u8 = 9;
/// txnproc, from version 2: a unit ends; what it was made of, counted.
pub const RECORD_UNIT_END: u8 = 8;
/// txnproc, from version 3: what became of a unit of one node.
pub const RECORD_UNIT_CONFIRM: u8 = 10;
/// download, upload: a table heading, numbered from 0 within its frame.
pub const RECORD_HEADING: u8 = 16;
/// download: the operations that follow belong to this unit.
pub const RECORD_UNIT: u8 = 17;
/// download: an operation.
pub const RECORD_OPERATION: u8 = 18;
/// download, from version 2: a schema object.
pub const RECORD_SCHEMA: u8 = 19;
/// download, from version 2: a mark.
pub const RECORD_MARK: u8 = 20;
/// download, from version 2: the rows of this unit are all that the node sees. No payload.
pub const RECORD_RESET: u8 = 21;
/// download, from version 3: what became of a unit of the node.
pub const RECORD_CONFIRM: u8 = 22;
/// upload, from version 3: a unit begins.
pub const RECORD_UPLOAD_UNIT: u8 = 32;
/// upload, from version 3: a change of a row, or the last piece of one.
pub const RECORD_UPLOAD_CHANGE: u8 = 33;
/// upload, from version 3: a piece of the change that ends with the next change record.
pub const RECORD_UPLOAD_PIECE: u8 = 34;

/// What the hash of a unit begins with, so that it can never equal another hash of ours.
pub const UNIT_HASH_DOMAIN: &[u8] = b"dockmaster unit 1\0";
