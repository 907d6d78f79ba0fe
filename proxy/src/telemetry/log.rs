//! The access log's way to its file: through a bounded queue to a thread, so that a slow disk never stops a worker.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::Record;
use crate::config::{self, LogFormat, LogTarget};

/// Lines that may wait, some 8 MB of them; what comes beyond is dropped and counted.
const LINES_MAX: usize = 16_384;

/// An open access log. Cheap to share between workers.
#[derive(Debug)]
pub struct AccessLog {
    sink: NonBlocking,
    dropped: ErrorCounter,
    reported: AtomicU64,
    format: LogFormat,
    _guard: WorkerGuard,
}

impl AccessLog {
    /// Opens the target, which a file is appended to.
    ///
    /// # Errors
    /// When the file cannot be opened for writing.
    pub fn open(config: &config::AccessLog) -> io::Result<Self> {
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_MAX)
            .thread_name("access-log");
        let (sink, guard) = match &config.target {
            LogTarget::Stdout => builder.finish(io::stdout()),
            LogTarget::File(path) => {
                let file =
                    OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
                        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                    })?;
                builder.finish(file)
            }
        };
        let dropped = sink.error_counter();
        let reported = AtomicU64::new(0);
        Ok(Self { sink, dropped, reported, format: config.format, _guard: guard })
    }

    /// Queues a line; never waits.
    pub fn write(&self, record: &Record) {
        let line = record.to_line(self.format);
        // A lossy sink takes or drops the line and never fails.
        let _ = self.sink.clone().write_all(line.as_bytes());
    }

    /// Lines dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        let all = self.dropped.dropped_lines() as u64;
        all.saturating_sub(self.reported.swap(all, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let target = LogTarget::File("/nonexistent/access.log".into());
        let error = AccessLog::open(&config::AccessLog { target, format: LogFormat::Json });
        assert!(error.unwrap_err().to_string().contains("/nonexistent/access.log"));
    }
}
