//! A network whose connections end in the hands of a test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use super::{Network, Target};
use crate::transport::Transport as _;
use crate::transport::double::{Double, pair};

/// What becomes of an attempt to connect.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It fails in this way.
    Fail(io::Error),
    /// It waits until its socket is shut down.
    Hang,
}

/// Connects at once where no [`Attempt`] is left.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    /// For the coming attempts.
    pub(crate) attempts: RefCell<VecDeque<Attempt>>,
    /// Every target that was tried, in order.
    pub(crate) tried: RefCell<Vec<Target>>,
    /// Connections made: the gateway's end, which may be scripted, and the upstream's.
    pub(crate) made: RefCell<VecDeque<(Double, Double)>>,
}

impl Scripted {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// The oldest connection not yet taken.
    pub(crate) fn take(&self) -> (Double, Double) {
        self.made.borrow_mut().pop_front().expect("a connection was made")
    }

    pub(crate) fn fail(&self, errno: i32) {
        let error = io::Error::from_raw_os_error(errno);
        self.attempts.borrow_mut().push_back(Attempt::Fail(error));
    }
}

impl Network for Scripted {
    type Io = Double;
    type Connecting = Pin<Box<dyn Future<Output = io::Result<Double>>>>;

    fn connect(&self, target: &Target) -> io::Result<(Double, Self::Connecting)> {
        self.tried.borrow_mut().push(target.clone());
        let (near, far) = pair(1 << 16);
        let io = near.clone();
        match self.attempts.borrow_mut().pop_front() {
            None => {
                self.made.borrow_mut().push_back((near.clone(), far));
                Ok((near, Box::pin(async { Ok(io) })))
            }
            Some(Attempt::Fail(error)) => Ok((near, Box::pin(async { Err(error) }))),
            Some(Attempt::Hang) => {
                let hang = async move {
                    let _far = far;
                    io.readable().await?;
                    Err(io::ErrorKind::ConnectionAborted.into())
                };
                Ok((near, Box::pin(hang)))
            }
        }
    }
}
