//! What the terminal shows.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;
use sluice_tests::{agent::Agent, sandbox::Sandbox, traffic::Spread};

use crate::scene::{Role, Scene};

/// Cells of the longest bar.
const BAR: usize = 40;

/// Lines of a log that are shown.
const LOG_LINES: usize = 15;

/// How things are marked.
#[derive(Clone, Copy)]
enum Style {
    Bold,
    Faint,
    Green,
    Red,
    Cyan,
    Blue,
}

/// Standard output, with or without colour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        // https://no-color.org: set and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { terminal, colour: terminal && !refused }
    }

    pub(crate) fn title(self, text: &str) {
        self.line(&self.paint(Style::Bold, text));
    }

    pub(crate) fn heading(self, text: &str) {
        self.line("");
        self.line(&self.paint(Style::Bold, text));
    }

    /// A step that is done.
    pub(crate) fn done(self, what: &str, took: Duration) {
        let mark = self.paint(Style::Green, "✓");
        let took = self.paint(Style::Faint, &format!("{:.1} s", took.as_secs_f64()));
        self.line(&format!("  {mark} {what}  {took}"));
    }

    pub(crate) fn note(self, text: &str) {
        self.line(if text.is_empty() { String::new() } else { format!("  {text}") }.as_str());
    }

    pub(crate) fn success(self, text: &str) {
        self.line("");
        self.line(&format!("{} {text}", self.paint(Style::Green, "✓")));
    }

    pub(crate) fn failure(self, text: &str) {
        self.erase_progress();
        self.line(&format!("{} {text}", self.paint(Style::Red, "✗ failed:")));
    }

    pub(crate) fn interrupted(self) {
        self.erase_progress();
        self.line("interrupted: agents, namespaces and files are being removed");
    }

    /// How far a measurement has come; on a terminal only, where the next line replaces it.
    pub(crate) fn progress(self, done: usize, of: usize) {
        if self.terminal {
            self.write(&format!("\r  {} of {}", thousands(done), thousands(of)));
        }
        if done == of {
            self.erase_progress();
        }
    }

    fn erase_progress(self) {
        if self.terminal {
            self.write("\r\x1b[K");
        }
    }

    /// A bar for every pod that there is, in their order, so that one which got nothing is seen to.
    pub(crate) fn bars(self, spread: &Spread, pods: &[(String, Role)]) {
        let most = spread.iter().map(|(_, count)| count).max().unwrap_or(0).max(1);
        for (name, role) in pods {
            let count = spread.of(name);
            let (bar, width) = bar(count, most);
            let style = if *role == Role::Local { Style::Cyan } else { Style::Blue };
            let bar = self.paint(style, &bar);
            let space = " ".repeat(BAR + 1 - width);
            let role = self.paint(Style::Faint, &format!("{:<6}", role.as_str()));
            self.line(&format!("  {name:<8} {role} {bar}{space}{:>6}", thousands(count)));
        }
    }

    /// Runs a command of the agent's binary and shows it as on a terminal.
    pub(crate) fn command(self, agent: &Agent, command: &str) -> Result<()> {
        let prompt = format!("node-1# sluice {command} --bpffs {}", agent.bpffs().display());
        self.line("");
        self.line(&self.paint(Style::Faint, &prompt));
        let output = agent.ask(&[command])?;
        output.lines().for_each(|line| self.line(line));
        Ok(())
    }

    /// The ends of the agents' logs.
    pub(crate) fn logs(self, agents: &[Agent]) {
        for agent in agents {
            self.heading(&format!("The last that the agent of {} logged", agent.node()));
            let log = agent.log().unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<_> = log.lines().collect();
            lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| self.note(line));
        }
    }

    /// Says how to enter the nodes.
    pub(crate) fn hold(self, scene: &Scene) {
        self.heading("Everything stays up until Ctrl-C. To look around:");
        let mounts = Sandbox::shared().map(Sandbox::namespace_path).unwrap_or_default();
        for node in &scene.cluster.nodes {
            let net = node.namespace.path();
            self.note(&format!("{}: nsenter --net={net} --mount={mounts}", node.name));
        }
    }

    fn line(self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    fn write(self, text: &str) {
        let mut out = io::stdout();
        // Nobody is there to be told that nobody reads this.
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }

    fn paint(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => 1,
            Style::Faint => 2,
            Style::Red => 31,
            Style::Green => 32,
            Style::Blue => 34,
            Style::Cyan => 36,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A bar in eighths of a cell, and the cells it takes.
fn bar(count: usize, most: usize) -> (String, usize) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = count * BAR * 8 / most;
    let (full, rest) = (eighths / 8, EIGHTHS[eighths % 8]);
    (format!("{}{rest}", "█".repeat(full)), full + rest.chars().count())
}

/// A number with separators.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_from_the_right() {
        let texts = [0, 12, 999, 1000, 1_234_567].map(thousands);
        assert_eq!(texts, ["0", "12", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(0, 10), (String::new(), 0));
        assert_eq!(bar(10, 10), ("█".repeat(BAR), BAR));
        assert_eq!(bar(5, 10), ("█".repeat(BAR / 2), BAR / 2));
        assert_eq!(bar(1, 64), ("▋".to_owned(), 1));
    }
}
