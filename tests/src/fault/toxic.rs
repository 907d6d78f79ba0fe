use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connects to the target.
    Up,
    /// Back from it.
    Down,
}

impl Way {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is passed on.
    Open,
    /// The kernel refuses it: nobody listens at the port.
    Refused,
    /// It is accepted and reset.
    Reset,
    /// It is accepted, and nobody ever reads from it.
    Silent,
}

/// Whether bytes move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They do.
    #[default]
    Moving,
    /// Nothing is read: the sender sees its window close.
    Stalled,
}

/// How a connection is broken off once so many bytes have passed in the direction, counted for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides get a reset.
    Reset(u64),
    /// Both sides get FIN and nothing more.
    Close(u64),
    /// The receiver gets FIN, the sender is read on and what it says is dropped; the other direction goes on.
    Finish(u64),
    /// Nothing more passes, and nobody is told.
    Stall(u64),
}

impl Ending {
    pub(super) const fn after(self) -> u64 {
        match self {
            Self::Reset(after) | Self::Close(after) | Self::Finish(after) | Self::Stall(after) => {
                after
            }
        }
    }
}

/// What is done to the bytes of one direction. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Toxic {
    /// By how much each byte is late.
    pub latency: Duration,
    /// Up to how much more, at random. Order is kept.
    pub jitter: Duration,
    /// How many bytes pass in a second.
    pub rate: Option<NonZeroU32>,
    /// How many bytes are sent at once at most; each piece has a random size up to this.
    pub piece: Option<NonZeroUsize>,
    /// How long after each piece nothing is sent.
    pub pause: Duration,
    /// Whether bytes move.
    pub flow: Flow,
    /// How it is broken off.
    pub ending: Option<Ending>,
    /// How long the end of the one side is kept from the other.
    pub close_delay: Duration,
}

impl Toxic {
    /// Late by this.
    #[must_use]
    pub fn late(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    /// So many bytes in a second; 0 is taken for 1.
    #[must_use]
    pub fn rate(bytes: u32) -> Self {
        Self { rate: NonZeroU32::new(bytes.max(1)), ..Self::default() }
    }

    /// In pieces of up to so many bytes, with a pause after each; 0 is taken for 1.
    #[must_use]
    pub fn pieces(bytes: usize, pause: Duration) -> Self {
        Self { piece: NonZeroUsize::new(bytes.max(1)), pause, ..Self::default() }
    }

    /// Nothing moves.
    #[must_use]
    pub fn stalled() -> Self {
        Self { flow: Flow::Stalled, ..Self::default() }
    }

    /// Broken off.
    #[must_use]
    pub fn ending(ending: Ending) -> Self {
        Self { ending: Some(ending), ..Self::default() }
    }

    /// The end of the one side is told to the other this much later.
    #[must_use]
    pub fn slow_close(close_delay: Duration) -> Self {
        Self { close_delay, ..Self::default() }
    }
}
