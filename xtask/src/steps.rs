//! Steps that all run, whatever becomes of the earlier ones, and one line at the end that says how each went.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::report;

/// A command made of steps.
pub(crate) struct Steps {
    title: &'static str,
    results: Vec<(&'static str, Outcome)>,
}

enum Outcome {
    Passed(Duration),
    Failed,
}

impl Steps {
    /// No steps yet, of the command of this name.
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, results: Vec::new() }
    }

    /// Runs a step; its error is printed at once, near the output that explains it.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) {
        report(format_args!("\n{:<14} {name}", self.title));
        let begun = Instant::now();
        let outcome = match step() {
            Ok(()) => Outcome::Passed(begun.elapsed()),
            Err(error) => {
                report(format_args!("{:<14} {name}: {error:#}", "FAILED"));
                Outcome::Failed
            }
        };
        self.results.push((name, outcome));
    }

    /// Prints the summary.
    pub(crate) fn finish(self) -> ExitCode {
        println!("\n{self}");
        let failed = self.results.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed));
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .results
            .iter()
            .map(|(name, outcome)| match outcome {
                Outcome::Passed(time) => format!("{name} ok ({:.0} s)", time.as_secs_f32()),
                Outcome::Failed => format!("{name} FAILED"),
            })
            .collect();
        write!(f, "{:<14} {}", self.title, words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn later_steps_run_after_a_failure_and_the_summary_tells() {
        let mut steps = Steps::new("test");
        steps.run("unit", || bail!("one test failed"));
        steps.run("netns", || Ok(()));
        assert_eq!(steps.to_string(), "test           unit FAILED, netns ok (0 s)");
        assert_eq!(steps.finish(), ExitCode::FAILURE);
    }
}
