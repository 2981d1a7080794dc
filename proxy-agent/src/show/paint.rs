//! Colours, where there is somebody to see them.

use std::io::{IsTerminal as _, stdout};

use comfy_table::{Attribute, Cell, Color};

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// It is text and nothing else.
    Plain,
    /// It is for a terminal.
    Colours,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Not as it should be.
    Bad,
    /// A heading.
    Heading,
}

impl Paint {
    /// Colours if standard output is a terminal and nobody has asked for none (<https://no-color.org>).
    #[must_use]
    pub fn detect() -> Self {
        let set = |variable: &str| std::env::var_os(variable).unwrap_or_default();
        if stdout().is_terminal() && set("NO_COLOR").is_empty() && set("TERM") != "dumb" {
            Self::Colours
        } else {
            Self::Plain
        }
    }

    /// The text in that tone. Whatever pads it must do so before.
    pub(super) fn text(self, text: &str, tone: Tone) -> String {
        // Select Graphic Rendition (ECMA-48 8.3.117).
        let code = match (self, tone) {
            (Self::Plain, _) => return text.to_owned(),
            (_, Tone::Good) => 32,
            (_, Tone::Warning) => 33,
            (_, Tone::Bad) => 31,
            (_, Tone::Heading) => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A cell of a table in that tone. Tables of [`grid`](super::grid) leave it out where there are no colours.
    pub(super) fn cell(text: impl Into<String>, tone: Tone) -> Cell {
        let cell = Cell::new(text.into());
        match tone {
            Tone::Good => cell.fg(Color::Green),
            Tone::Warning => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red),
            Tone::Heading => cell.add_attribute(Attribute::Bold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(Paint::Plain.text("gone", Tone::Bad), "gone");
        assert_eq!(Paint::Colours.text("gone", Tone::Bad), "\x1b[31mgone\x1b[0m");
    }
}
