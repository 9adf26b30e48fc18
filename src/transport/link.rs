//! One line between two peers: messages in and out over any pair of byte streams, with limits.
//!
//! Frames are a length (u32, little-endian) and one message. Outgoing messages go through two bounded queues: file content waits for
//! the line (back-pressure), urgent messages (`Message::is_urgent`) overtake it. The line counts bytes in both directions, because a
//! peer on a slow line is alive while bytes move, even if no message is whole yet (fault 26), and a peer that trickles is not (fault 25).

use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;
use crate::session::codec::{self, CodecError};
use crate::session::message::Message;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// How long either side waits for what. The defaults suit a line of 9.6 kbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From connecting to a `Welcome` or `Refused`.
    pub handshake: Duration,
    /// Silence after which a `Ping` goes out.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as gone. At least twice `heartbeat`.
    pub dead_after: Duration,
    /// Window in which the peer must take, or finish sending, something.
    pub stall_window: Duration,
    /// Fewest bytes per second of a transfer that is under way, on average over the window.
    pub rate_min: u64,
    /// How often a connected node is looked up again (a disabled node is cut off within this time).
    pub recheck: Duration,
    /// Pause before the answer to a node that may not come in, the same for every reason (T18).
    pub refusal_pause: Duration,
    /// How long the last messages may take to leave when a session ends.
    pub farewell: Duration,
    /// How long a sync waits for the server to route what its log holds. Less than `handshake`.
    pub catch_up: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            handshake: Duration::from_secs(10),
            heartbeat: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            stall_window: Duration::from_secs(60),
            rate_min: 256,
            recheck: Duration::from_secs(4),
            refusal_pause: Duration::from_millis(250),
            farewell: Duration::from_secs(3),
            catch_up: Duration::from_secs(6),
        }
    }
}

/// Why a line ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The operating system says so.
    #[error("the line broke: {0}")]
    Io(#[source] io::Error),
    /// The peer sent something that is no message.
    #[error("bad message: {0}")]
    Codec(#[from] CodecError),
    /// The peer closed the line.
    #[error("the peer closed the line")]
    Closed,
    /// Nothing was heard for too long.
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// Something was under way, too slowly.
    #[error("{direction} slower than {rate_min} bytes/s for {} s", .window.as_secs_f32())]
    Slow {
        /// "sending" or "receiving".
        direction: &'static str,
        /// The limit.
        rate_min: u64,
        /// Over how long.
        window: Duration,
    },
    /// The peer asks faster than it takes the answers.
    #[error("the peer floods the line")]
    Flood,
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        match error.kind() {
            // Without the farewell of TLS: it died, or was cut off. What was on its way is not taken for the whole of it (T5).
            io::ErrorKind::UnexpectedEof => LinkError::Closed,
            _ => LinkError::Io(error),
        }
    }
}

/// Bytes that went through, and when the last ones did.
#[derive(Debug)]
struct Meter {
    began: Instant,
    bytes: AtomicU64,
    /// Milliseconds from `began`.
    last: AtomicU64,
}

impl Meter {
    fn new() -> Arc<Meter> {
        Arc::new(Meter { began: Instant::now(), bytes: AtomicU64::new(0), last: AtomicU64::new(0) })
    }

    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.last.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn since_last(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

#[derive(Debug)]
struct MeteredRead<R> {
    inner: R,
    meter: Arc<Meter>,
}

impl<R: AsyncRead + Unpin> AsyncRead for MeteredRead<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.meter.add(buffer.filled().len() - before);
        polled
    }
}

#[derive(Debug)]
struct MeteredWrite<W> {
    inner: W,
    meter: Arc<Meter>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for MeteredWrite<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.meter.add(*written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Urgent messages that may wait for the line before the peer counts as flooding it.
const URGENT_WAITING_MAX: usize = 64;
/// Content messages that may wait for the line. Small, so that a slow line holds little memory.
const CONTENT_WAITING_MAX: usize = 4;

/// A byte stream of any kind.
struct BoxRead(Box<dyn AsyncRead + Send + Unpin>);

impl std::fmt::Debug for BoxRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stream")
    }
}

impl AsyncRead for BoxRead {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// The receiving half of a line.
#[derive(Debug)]
pub struct Incoming {
    frames: FramedRead<MeteredRead<BoxRead>, LengthDelimitedCodec>,
}

impl Incoming {
    /// Takes frames up to this length from now on.
    pub fn allow(&mut self, frame_max: usize) {
        self.frames.decoder_mut().set_max_frame_length(frame_max);
    }

    /// Waits for the next message. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The line broke, was closed, or brought something that is no message.
    pub async fn receive(&mut self) -> Result<Message, LinkError> {
        match self.frames.next().await {
            Some(Ok(frame)) => Ok(codec::decode(&frame.freeze())?),
            Some(Err(error)) => Err(error.into()),
            None => Err(LinkError::Closed),
        }
    }
}

/// The sending half of a line.
#[derive(Debug)]
pub struct Outgoing {
    urgent: Option<mpsc::Sender<Bytes>>,
    content: Option<mpsc::Sender<Bytes>>,
    writer: JoinHandle<Result<(), LinkError>>,
}

impl Outgoing {
    /// Sends a message in its place: an urgent one at once, any other one after waiting for the line if it must.
    ///
    /// # Errors
    /// The message breaks a limit, the peer floods the line, or it broke.
    pub async fn send(&self, message: &Message) -> Result<(), LinkError> {
        let bytes = codec::encode(message)?;
        let queue = if message.is_urgent() { &self.urgent } else { &self.content };
        let queue = queue.as_ref().ok_or(LinkError::Closed)?;
        if message.is_urgent() {
            return queue.try_send(bytes).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LinkError::Flood,
                mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
            });
        }
        queue.send(bytes).await.map_err(|_| LinkError::Closed)
    }

    /// Waits until the line takes one more content message. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The line broke.
    pub async fn ready(&self) -> Result<(), LinkError> {
        let queue = self.content.as_ref().ok_or(LinkError::Closed)?;
        queue.reserve().await.map(drop).map_err(|_| LinkError::Closed)
    }

    /// Whether content waits for the line.
    fn is_clogged(&self) -> bool {
        self.content.as_ref().is_some_and(|queue| queue.capacity() < CONTENT_WAITING_MAX)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// Tells from outside how long a line has been silent.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Meter>);

impl Pulse {
    /// Returns how long nothing at all was heard.
    pub fn silence(&self) -> Duration {
        self.0.since_last()
    }
}

/// One line. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    /// The receiving half.
    pub incoming: Incoming,
    /// The sending half.
    pub outgoing: Outgoing,
    heard: Arc<Meter>,
    said: Arc<Meter>,
    timing: Timing,
    window: Window,
}

/// State of the two rate checks.
#[derive(Debug)]
struct Window {
    began: Instant,
    heard: u64,
    said: u64,
    /// Whether, at every tick of the window, something was on its way out.
    sending: bool,
    /// The same for in.
    receiving: bool,
}

impl Link {
    /// Makes a line of two byte streams. Frames longer than `frame_max` bytes end it before anything is allocated. Must be called
    /// inside a tokio runtime.
    pub fn new<R, W>(reader: R, writer: W, frame_max: usize, timing: Timing) -> Link
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (heard, said) = (Meter::new(), Meter::new());
        let reader = BoxRead(Box::new(reader));
        let frames = FramedRead::new(MeteredRead { inner: reader, meter: heard.clone() }, frame(frame_max));
        let (urgent, urgent_queue) = mpsc::channel(URGENT_WAITING_MAX);
        let (content, content_queue) = mpsc::channel(CONTENT_WAITING_MAX);
        let sink = FramedWrite::new(MeteredWrite { inner: writer, meter: said.clone() }, frame(SESSION_MESSAGE_BYTES_MAX));
        let writer = tokio::spawn(write_all(sink, urgent_queue, content_queue));
        let window = Window { began: Instant::now(), heard: 0, said: 0, sending: true, receiving: true };
        let outgoing = Outgoing { urgent: Some(urgent), content: Some(content), writer };
        Link { incoming: Incoming { frames }, outgoing, heard, said, timing, window }
    }

    /// Returns a handle that tells how long the line has been silent.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.heard.clone())
    }

    /// Returns the bytes received and sent so far, frames included.
    pub fn bytes(&self) -> (u64, u64) {
        (self.heard.bytes(), self.said.bytes())
    }

    /// Checks the line at a tick: whether the peer is alive and what is under way moves.
    ///
    /// # Errors
    /// `Silent` or `Slow`.
    pub fn check(&mut self) -> Result<(), LinkError> {
        if self.heard.since_last() > self.timing.dead_after {
            return Err(LinkError::Silent(self.timing.dead_after));
        }
        let (heard, said) = self.bytes();
        self.window.sending &= self.outgoing.is_clogged();
        self.window.receiving &= !self.incoming.frames.read_buffer().is_empty();
        let elapsed = self.window.began.elapsed();
        if elapsed < self.timing.stall_window {
            return Ok(());
        }
        let least = self.timing.rate_min.saturating_mul(elapsed.as_secs().max(1));
        let slow = |direction| LinkError::Slow { direction, rate_min: self.timing.rate_min, window: self.timing.stall_window };
        if self.window.sending && said - self.window.said < least {
            return Err(slow("sending"));
        }
        if self.window.receiving && heard - self.window.heard < least {
            return Err(slow("receiving"));
        }
        self.window = Window { began: Instant::now(), heard, said, sending: true, receiving: true };
        Ok(())
    }

    /// Sends what waits, closes the sending half, and gives the peer a moment to take it.
    pub async fn close(mut self) {
        self.outgoing.urgent = None;
        self.outgoing.content = None;
        let farewell = self.timing.farewell;
        if !matches!(tokio::time::timeout(farewell, &mut self.outgoing.writer).await, Ok(Ok(Ok(())))) {
            return;
        }
        // Closing a socket with unread bytes in it resets the line and may destroy our last message on its way: read on until
        // the peer closes its half, or the time is up.
        let drain = async { while matches!(self.incoming.frames.next().await, Some(Ok(_))) {} };
        let _expired = tokio::time::timeout(farewell, drain).await;
    }
}

fn frame(max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().little_endian().length_field_length(4).max_frame_length(max).new_codec()
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut sink: FramedWrite<MeteredWrite<W>, LengthDelimitedCodec>,
    mut urgent: mpsc::Receiver<Bytes>,
    mut content: mpsc::Receiver<Bytes>,
) -> Result<(), LinkError> {
    let (mut urgent_open, mut content_open) = (true, true);
    while urgent_open || content_open {
        let next = tokio::select! {
            biased;
            next = urgent.recv(), if urgent_open => { urgent_open = next.is_some(); next }
            next = content.recv(), if content_open => { content_open = next.is_some(); next }
        };
        if let Some(bytes) = next {
            sink.feed(bytes).await?;
            if urgent.is_empty() && content.is_empty() {
                SinkExt::<Bytes>::flush(&mut sink).await?;
            }
        }
    }
    SinkExt::<Bytes>::flush(&mut sink).await?;
    SinkExt::<Bytes>::close(&mut sink).await?;
    Ok(())
}
