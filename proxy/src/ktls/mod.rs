//! The record layer from the end of the handshake on: in user space for now.
