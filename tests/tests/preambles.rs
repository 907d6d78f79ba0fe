//! What comes before or instead of a request: preambles, handshakes in odd shapes, connections in bulk.
