//! System calls that are not operations on a ring.
