//! A scripted socket.
