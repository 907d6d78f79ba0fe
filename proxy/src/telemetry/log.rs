//! The access log's way to its file: through a bounded queue to a thread, so that a slow disk never stops a worker.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

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
    failures: Arc<Failures>,
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
        let failures = Arc::<Failures>::default();
        let (sink, guard) = match &config.target {
            LogTarget::Stdout => builder.finish(Lines::new(io::stdout(), &failures)),
            LogTarget::File(path) => {
                let file =
                    OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
                        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                    })?;
                builder.finish(Lines::new(file, &failures))
            }
        };
        let dropped = sink.error_counter();
        let reported = AtomicU64::new(0);
        Ok(Self { sink, dropped, reported, failures, format: config.format, _guard: guard })
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

    /// Lines that could not be written since the last call, and what the last one failed with.
    pub fn take_failed(&self) -> Option<(u64, io::Error)> {
        let count = self.failures.count.swap(0, Ordering::Relaxed);
        let code = self.failures.code.load(Ordering::Relaxed);
        (count > 0).then(|| (count, io::Error::from_raw_os_error(code)))
    }
}

/// Lines that could not be written.
#[derive(Debug, Default)]
struct Failures {
    count: AtomicU64,
    /// The `errno` of the last one.
    code: AtomicI32,
}

/// Writes lines, and counts those that it cannot write: the thread behind the queue would pass over them without a word.
struct Lines<W> {
    target: W,
    failures: Arc<Failures>,
    end: LastLine,
}

/// How the target ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLine {
    Whole,
    Cut,
}

impl<W: io::Write> Lines<W> {
    fn new(target: W, failures: &Arc<Failures>) -> Self {
        Self { target, failures: Arc::clone(failures), end: LastLine::Whole }
    }

    fn write_line(&mut self, mut line: &[u8]) -> io::Result<()> {
        if self.end == LastLine::Cut {
            self.target.write_all(b"\n")?;
            self.end = LastLine::Whole;
        }
        while !line.is_empty() {
            match self.target.write(line) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    line = &line[count..];
                    self.end = LastLine::Cut;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.end = LastLine::Whole;
        Ok(())
    }
}

impl<W: io::Write> io::Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.write_line(line) {
            self.failures.count.fetch_add(1, Ordering::Relaxed);
            self.failures.code.store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that has room for so many bytes.
    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl io::Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.bytes.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_costs_is_counted_and_the_next_line_begins_anew() {
        let failures = Arc::<Failures>::default();
        let mut lines = Lines::new(Disk { room: 8, ..Disk::default() }, &failures);
        for line in ["first\n", "second\n", "third\n"] {
            assert_eq!(lines.write(line.as_bytes()).unwrap(), line.len());
        }
        assert_eq!(failures.count.load(Ordering::Relaxed), 2);
        assert_eq!(failures.code.load(Ordering::Relaxed), libc::ENOSPC);
        lines.target.room = 100;
        lines.write_all(b"fourth\n").unwrap();
        assert_eq!(lines.target.bytes, b"first\nse\nfourth\n");
    }

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let target = LogTarget::File("/nonexistent/access.log".into());
        let error = AccessLog::open(&config::AccessLog { target, format: LogFormat::Json });
        assert!(error.unwrap_err().to_string().contains("/nonexistent/access.log"));
    }
}
