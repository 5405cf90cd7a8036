//! The programs' own log records, handed on to this process's log.
use std::fmt;

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};
use log::Log;

/// Reads what the programs have logged.
pub struct ProgramLog(Option<EbpfLogger<&'static dyn Log>>);

impl ProgramLog {
    /// Of programs just loaded; a log that cannot be read is a warning, not an end.
    pub fn open(ebpf: &mut Ebpf) -> Self {
        match EbpfLogger::init(ebpf) {
            Ok(logger) => Self(Some(logger)),
            // The optimiser left no log statement in the programs.
            Err(Error::MapNotFound) => {
                log::warn!("the programs have no log");
                Self(None)
            }
            Err(error) => {
                log::warn!("read the programs' log: {error}");
                Self(None)
            }
        }
    }

    /// Hands on what has come since the last call.
    pub fn flush(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}

impl fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgramLog").field(&self.0.is_some()).finish()
    }
}
