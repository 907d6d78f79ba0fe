//! What takes long is done one after the other, with a turn of everybody else in between.
//!
//! A worker does in one turn all that is ready. A hundred handshakes that arrive together, or as many large buffers that are
//! to be sealed, would hold a message up for as long as all of them take; each is some dozens of messages.

use std::cell::Cell;
use std::future::Future;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Lets one long step into each turn of a worker, in the order in which they came.
#[derive(Debug)]
pub struct Turnstile(Semaphore);

impl Default for Turnstile {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

/// Leave for one long step.
#[derive(Debug)]
#[must_use = "the next one waits for it"]
pub struct Leave<'a> {
    _permit: SemaphorePermit<'a>,
}

impl Turnstile {
    /// Waits until it is one's turn. Leave that is dropped unused is the next one's.
    pub async fn enter(&self) -> Leave<'_> {
        Leave { _permit: self.0.acquire().await.expect("it is never closed") }
    }
}

impl Leave<'_> {
    /// Does `step`. What it computes before it first waits has the turn for itself; the next one comes when `turn` is
    /// over, however long this one waits after that.
    pub async fn go<T>(self, turn: impl Future<Output = ()>, step: impl Future<Output = T>) -> T {
        self.go_and_return(turn, step).await.0
    }

    /// The same, but also gives the leave back where `step` was over when `turn` was: for a step that goes on where this
    /// one ended.
    pub async fn go_and_return<T>(
        self,
        turn: impl Future<Output = ()>,
        step: impl Future<Output = T>,
    ) -> (T, Option<Self>) {
        let is_over = Cell::new(false);
        let step = async {
            let done = step.await;
            is_over.set(true);
            done
        };
        let turn = async {
            turn.await;
            is_over.get().then_some(self)
        };
        // What ends together is to be seen as over.
        tokio::join!(biased; step, turn)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn one_long_step_is_done_in_a_turn_and_nobody_waits_for_what_it_waits_for() {
        let turnstile = Turnstile::default();
        let done = RefCell::new(Vec::new());
        let turns = [Rc::new(Semaphore::new(0)), Rc::new(Semaphore::new(0))];
        let long = |name: usize| {
            let (turn, done) = (Rc::clone(&turns[name]), &done);
            let step = async move {
                done.borrow_mut().push(name);
                // A peer that takes nothing.
                pending::<()>().await;
            };
            let turn = async move { drop(turn.acquire().await) };
            async { turnstile.enter().await.go(turn, step).await }
        };
        let (mut first, mut second) = (pin!(long(0)), pin!(long(1)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert_eq!(*done.borrow(), [0], "the second waits for a turn");
        turns[0].add_permits(1);
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert_eq!(*done.borrow(), [0, 1]);
        turns[1].add_permits(1);
        assert!(second.as_mut().poll(&mut cx).is_pending());
        let third = pin!(async { turnstile.enter().await.go(ready(()), async { "done" }).await });
        assert_eq!(third.poll(&mut cx), Poll::Ready("done"));
    }

    #[test]
    fn leave_comes_back_where_the_step_was_over_within_the_turn() {
        let turnstile = Turnstile::default();
        let mut cx = Context::from_waker(Waker::noop());
        let leave = |turn: &Rc<Semaphore>, step: &Rc<Semaphore>| {
            let (turn, step) = (Rc::clone(turn), Rc::clone(step));
            let turn = async move { drop(turn.acquire().await) };
            let step = async move { drop(step.acquire().await) };
            async { turnstile.enter().await.go_and_return(turn, step).await.1 }
        };
        let [turn, step] = [0, 0].map(|permits| Rc::new(Semaphore::new(permits)));
        let mut quick = pin!(leave(&turn, &step));
        assert!(quick.as_mut().poll(&mut cx).is_pending());
        turn.add_permits(1);
        step.add_permits(1);
        let Poll::Ready(Some(kept)) = quick.as_mut().poll(&mut cx) else { panic!("it was over") };
        let mut next = pin!(turnstile.enter());
        assert!(next.as_mut().poll(&mut cx).is_pending(), "nobody passes meanwhile");
        drop(kept);
        let Poll::Ready(next) = next.poll(&mut cx) else { panic!("the leave is free") };
        drop(next);
        let [turn, step] = [1, 0].map(|permits| Rc::new(Semaphore::new(permits)));
        let mut slow = pin!(leave(&turn, &step));
        assert!(slow.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(turnstile.enter()).poll(&mut cx).is_ready(), "it waits for itself alone");
        step.add_permits(1);
        assert!(matches!(slow.poll(&mut cx), Poll::Ready(None)));
    }

    #[test]
    fn who_is_dropped_leaves_the_turn_to_the_next() {
        let turnstile = Turnstile::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(async { turnstile.enter().await.go(pending(), ready(())).await });
        assert!(first.as_mut().poll(&mut cx).is_pending());
        drop(first);
        let second = pin!(turnstile.enter());
        assert!(second.poll(&mut cx).is_ready());
    }
}
