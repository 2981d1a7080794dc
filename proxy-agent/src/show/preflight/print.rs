//! The checks for people.

use super::{Preflight, Status};
use crate::show::{Paint, Show, Tone};

impl Show for Preflight {
    fn table(&self, paint: Paint) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
        let mut text = String::new();
        for check in &self.checks {
            let (mark, tone) = match check.status {
                Status::Ok => ("ok     ", Tone::Good),
                Status::Warning => ("warning", Tone::Warning),
                Status::Failed => ("FAILED ", Tone::Bad),
            };
            text += &format!("{}  {:width$}  {}\n", paint.text(mark, tone), check.name, check.found);
            if let Some(remedy) = &check.remedy {
                text += &format!("{:9}{:width$}  -> {remedy}\n", "", "");
            }
        }
        let (verdict, tone) =
            match (self.ready, self.checks.iter().any(|check| check.status == Status::Warning)) {
                (true, false) => ("yes: Sluice can run here", Tone::Good),
                (true, true) => ("yes, with the warnings above: Sluice can run here", Tone::Warning),
                (false, _) => ("no: Sluice cannot run here", Tone::Bad),
            };
        text + "\n" + &paint.text(verdict, tone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::preflight::Check;

    #[test]
    fn people_see_what_is_wrong_and_what_to_do() {
        let checks = vec![
            Check::ok("kernel", "Linux 6.18"),
            Check::warning("cgroup2", "none", "mount one"),
            Check::failed("bpffs", "none", "mount it"),
        ];
        let expected = "\
ok       kernel   Linux 6.18
warning  cgroup2  none
                  -> mount one
FAILED   bpffs    none
                  -> mount it

no: Sluice cannot run here";
        assert_eq!(Preflight::new(checks.clone()).table(Paint::Plain), expected);
        let yes = Preflight::new(checks[..2].to_vec());
        assert!(
            yes.ready
                && yes.table(Paint::Plain).ends_with("yes, with the warnings above: Sluice can run here")
        );
    }
}
