//! Typed asynchronous operations on a ring; the only module that knows tokio-uring.
