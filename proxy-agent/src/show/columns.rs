//! Tables whose end is not known when their first line is printed.

use std::io::{self, Write};

use super::{Paint, Tone};

/// Columns, two spaces apart, that grow when something wider comes.
pub(super) struct Columns<const N: usize> {
    header: [&'static str; N],
    widths: [usize; N],
    paint: Paint,
}

/// A line: its cells, and what they say.
pub(super) type Line<const N: usize> = [(String, Option<Tone>); N];

impl<const N: usize> Columns<N> {
    /// Columns as wide as their headings.
    pub(super) fn new(header: [&'static str; N], paint: Paint) -> Self {
        Self { header, widths: header.map(str::len), paint }
    }

    /// Makes room for a line that is going to be printed.
    pub(super) fn fit(&mut self, line: &Line<N>) {
        for (width, (cell, _)) in self.widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }

    /// Prints the headings.
    pub(super) fn print_header(&self, out: &mut impl Write) -> io::Result<()> {
        let header = self.header.map(|heading| (heading.to_owned(), Some(Tone::Heading)));
        self.print_line(&header, out)
    }

    /// Prints a line.
    pub(super) fn print(&mut self, line: &Line<N>, out: &mut impl Write) -> io::Result<()> {
        self.fit(line);
        self.print_line(line, out)
    }

    fn print_line(&self, line: &Line<N>, out: &mut impl Write) -> io::Result<()> {
        // Nothing is padded behind the last cell that says something.
        let last = line.iter().rposition(|(cell, _)| !cell.is_empty()).map_or(0, |at| at + 1);
        for (at, ((cell, tone), width)) in line.iter().zip(self.widths).enumerate().take(last) {
            let shown = tone.map(|tone| self.paint.text(cell, tone));
            out.write_all(shown.as_deref().unwrap_or(cell).as_bytes())?;
            if at + 1 < last {
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                write!(out, "{:gap$}", "")?;
            }
        }
        out.write_all(b"\n")
    }
}

/// A cell that is as it should be.
pub(super) fn cell(text: impl Into<String>) -> (String, Option<Tone>) {
    (text.into(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_grow_and_nothing_trails() {
        let mut columns = Columns::new(["A", "LONGER", "C"], Paint::Plain);
        let mut out = Vec::new();
        columns.fit(&["first", "x", ""].map(cell));
        columns.print_header(&mut out).unwrap();
        columns.print(&["first", "x", ""].map(cell), &mut out).unwrap();
        columns.print(&["wider still", "", "z"].map(cell), &mut out).unwrap();
        columns.print(&["a", "b", "c"].map(cell), &mut out).unwrap();
        let expected = "\
A      LONGER  C
first  x
wider still          z
a            b       c
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn colours_take_no_room() {
        let mut columns = Columns::new(["A", "B"], Paint::Colours);
        let mut out = Vec::new();
        columns.print(&[("gone".to_owned(), Some(Tone::Bad)), cell("x")], &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\x1b[31mgone\x1b[0m  x\n");
    }
}
