//! Behaviour: the harness shared by the end-to-end tests.
