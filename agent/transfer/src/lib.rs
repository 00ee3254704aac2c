//! How bytes move between two agents.
//!
//! The shape that the sender and the receiver get:
//!
//! ```ignore
//! // --- disks -------------------------------------------------------------------------------
//! pub trait BlockRead: Send + Sync + 'static {          // blocking; called on blocking threads
//!     fn size(&self) -> Bytes;
//!     fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()>;
//!     fn next_data(&self, from: Bytes) -> io::Result<Option<Bytes>>;     // holes; default: Some(from)
//! }
//! pub trait BlockWrite: BlockRead { write_at, zero, sync }               // all &self, blocking
//! pub struct FileDisk;  // impl both; FileDisk::open_source(path), ::open_target(path), Caching::{Direct, Cached}
//!
//! // --- what the tracker knows --------------------------------------------------------------
//! pub trait Changes: Send + Sync + 'static {            // &self: the agent wraps its Mutex<Box<dyn Tracker>>
//!     fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex>;
//!     fn take(&self, disk: DiskNo, block: BlockIndex) -> PageMask;
//!     fn put_back(&self, disk: DiskNo, block: BlockIndex, mask: &PageMask);
//!     fn dirty(&self, disk: DiskNo) -> Bytes;           // bytes of dirty pages
//!     fn written(&self, disk: DiskNo) -> Bytes;         // for the dirty rate; never falls
//!     fn precise(&self) -> bool;                        // false: rescan, everything is always dirty
//! }
//! pub struct NoChanges;                                 // a disk that nobody writes
//!
//! // --- source ------------------------------------------------------------------------------
//! pub struct SourceDisk { pub no: DiskNo, pub size: Bytes, pub block_size: BlockSize, pub disk: Arc<dyn BlockRead> }
//! pub struct Sender;                                    // cheap to clone
//! impl Sender {
//!     pub fn new(migration: MigrationId, disks: Vec<SourceDisk>, changes: Arc<dyn Changes>) -> Result<Self, SenderError>;
//!     pub async fn connect<S>(&self, generation: u64, streams: Vec<S>) -> Result<(), SenderError>;
//!     pub async fn disconnect(&self);                   // what was in flight is dirty again
//!     pub async fn round(&self, number: u32, options: RoundOptions, progress: &watch::Sender<RoundProgress>) -> Round;
//!     pub fn stop_round(&self);
//!     pub fn limit_rate(&self, bytes_per_s: Option<Bytes>);
//!     pub fn remaining(&self) -> Bytes;
//!     pub fn seal(&self, drained_in: u32) -> Result<Vec<Digest>, SenderError>;
//!     pub fn generation(&self) -> Option<u64>;
//! }
//! pub struct RoundOptions { pub limit_rate: Option<Bytes>, pub compress: i32 }
//! pub struct Round { pub progress: RoundProgress, pub failure: Option<SenderError>, pub remaining: Bytes }
//!
//! // --- destination -------------------------------------------------------------------------
//! pub struct TargetDisk { pub no, pub size, pub block_size, pub disk: Arc<dyn BlockWrite>, pub holds: Holds::{Zeros, Anything} }
//! pub struct Receiver;                                  // cheap to clone
//! impl Receiver {
//!     pub fn new(migration: MigrationId, disks: Vec<TargetDisk>) -> Result<Self, ReceiverError>;
//!     pub async fn index(&self, progress: impl Fn(Bytes, Bytes) + Send + Sync) -> Result<(), ReceiverError>;
//!     pub async fn begin(&self, generation: u64) -> Result<(), ReceiverError>;   // drops every lower one, waits for its writers
//!     pub async fn serve<S>(&self, stream: S) -> Result<(), ReceiverError>;      // one data stream, from Hello to its end
//!     pub async fn disconnect(&self);
//!     pub async fn digests(&self) -> Result<Vec<Digest>, ReceiverError>;         // sync, then roots
//!     pub async fn reread(&self, progress: ...) -> Result<Vec<Digest>, ReceiverError>;
//! }
//! // SenderError and ReceiverError: From<...> for wire::control::Failure.
//! ```
//!
//! A data stream is `meet::open` (only on a pipe that outlives sessions, or everywhere), then
//! `secure::connect`, then `Sender::connect`; at the other end `meet::accept`, `secure::accept`,
//! `Receiver::serve`.

pub mod control;
pub mod meet;
pub mod secure;
