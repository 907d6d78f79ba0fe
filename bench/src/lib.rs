//! Numbers against rivals: the benchmark of the gateway.
