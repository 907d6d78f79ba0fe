//! Whose fault something is.

/// The party that caused an error; every log line about a failure names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client, or the network before us.
    Downstream,
    /// The application, or the network behind us.
    Upstream,
    /// This gateway or its machine.
    Local,
}

impl Fault {
    /// Word for logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Local => "local",
        }
    }
}
