//! What is going on.

use std::io::{self, IsTerminal as _, Write as _};

/// A line on standard error that the next one replaces, on a terminal only.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    /// Shown if standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    /// Says what is going on now.
    pub fn show(self, text: &str) {
        self.write(&format!("\r\x1b[K{text} …"));
    }

    /// Says something that stays.
    pub fn tell(self, text: &str) {
        self.write(&format!("\r\x1b[K{text}\n"));
    }

    /// Takes the line away.
    pub fn erase(self) {
        self.write("\r\x1b[K");
    }

    fn write(self, text: &str) {
        if self.terminal {
            let mut out = io::stderr();
            // Nobody is there to be told that nobody reads this.
            drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
