//! What is logged: klog's verbosities in tracing's terms.

use super::kube_proxy::{Logging, VModule};

/// What is logged if nobody asks for more. (kube's client reports as errors what the watches handle.)
const USUAL: &str = "info,kube_client=error";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A filter for tracing: what `--log` says, else what verbosities say.
pub(super) fn filter(log: Option<&str>, logging: &Logging) -> String {
    if let Some(log) = log {
        return log.to_owned();
    }
    let mut filter = USUAL.to_owned();
    if let Some(level) = level(logging.verbosity) {
        filter += &format!(",sluice={level},proxy_agent={level},proxy_model={level}");
    }
    for module in &logging.vmodule {
        if let Some(directive) = directive(module) {
            filter = format!("{filter},{directive}");
        }
    }
    filter
}

/// What of `vmodule` means nothing here: patterns of files, where the agent has modules.
pub(super) fn meaningless(logging: &Logging) -> impl Iterator<Item = &str> {
    logging.vmodule.iter().filter(|module| !is_module(module)).map(|module| module.file_pattern.as_str())
}

/// From klog's conventions: 2 is what is usual, 4 is for finding faults, from 6 on requests and more are shown.
fn level(verbosity: u32) -> Option<&'static str> {
    match verbosity {
        0..4 => None,
        4..6 => Some("debug"),
        6.. => Some("trace"),
    }
}

fn is_module(module: &VModule) -> bool {
    let name = module.file_pattern.as_bytes();
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'_')
}

fn directive(module: &VModule) -> Option<String> {
    let level = level(module.verbosity).unwrap_or("info");
    is_module(module).then(|| format!("proxy_agent::{}={level}", module.file_pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logging(verbosity: u32, modules: &[(&str, u32)]) -> Logging {
        let module = |&(name, verbosity): &(&str, u32)| VModule { file_pattern: name.to_owned(), verbosity };
        Logging { verbosity, vmodule: modules.iter().map(module).collect(), ..Logging::default() }
    }

    #[test]
    fn verbosities_become_levels_of_the_agents_own_modules() {
        for (verbosity, expected) in [
            (0, ""),
            (3, ""),
            (4, ",sluice=debug,proxy_agent=debug,proxy_model=debug"),
            (5, ",sluice=debug,proxy_agent=debug,proxy_model=debug"),
            (10, ",sluice=trace,proxy_agent=trace,proxy_model=trace"),
        ] {
            assert_eq!(filter(None, &logging(verbosity, &[])), format!("{USUAL}{expected}"));
        }
    }

    #[test]
    fn modules_have_verbosities_of_their_own() {
        let logging = logging(0, &[("watch", 6), ("run", 0), ("proxier*", 9), ("a/b", 4), ("", 4)]);
        assert_eq!(filter(None, &logging), format!("{USUAL},proxy_agent::watch=trace,proxy_agent::run=info"));
        assert_eq!(meaningless(&logging).collect::<Vec<_>>(), ["proxier*", "a/b", ""]);
    }

    #[test]
    fn ones_own_filter_wins() {
        assert_eq!(filter(Some("warn"), &logging(9, &[("watch", 6)])), "warn");
        for filtered in [USUAL.to_owned(), filter(None, &logging(9, &[("watch", 6)]))] {
            assert!(tracing_subscriber::EnvFilter::try_new(&filtered).is_ok(), "{filtered}");
        }
    }
}
