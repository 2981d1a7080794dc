//! What a test can make go wrong with requests.

use std::{collections::VecDeque, time::Duration};

/// Something that goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The answer is this HTTP status.
    Status(u16),
    /// The answer takes this long.
    Delay(Duration),
    /// The connection breaks in the middle of the answer.
    Cut,
    /// The version that is asked for is too old; the server says so with HTTP status 410 rather than by an event.
    Gone,
}

/// Which requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Lists, and their later pages.
    List,
    /// Later pages of lists.
    NextPage,
    /// Watches.
    Watch,
    /// Creations.
    Create,
}

/// The faults still to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    queue: VecDeque<Armed>,
}

#[derive(Debug)]
struct Armed {
    resource: String,
    verb: Verb,
    fault: Fault,
    times: usize,
}

impl Faults {
    pub(super) fn arm(&mut self, resource: &str, verb: Verb, fault: Fault, times: usize) {
        self.queue.push_back(Armed { resource: resource.to_owned(), verb, fault, times });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The fault for a request, if it is not spared.
    pub(super) fn take(&mut self, resource: &str, verb: Verb) -> Option<Fault> {
        let hits = |armed: &Armed| {
            armed.resource == resource
                && (armed.verb == verb || (armed.verb == Verb::List && verb == Verb::NextPage))
        };
        let at = self.queue.iter().position(hits)?;
        let armed = &mut self.queue[at];
        let fault = armed.fault;
        armed.times -= 1;
        if armed.times == 0 {
            self.queue.remove(at);
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_hit_what_they_are_for_as_often_as_said() {
        let mut faults = Faults::default();
        faults.arm("services", Verb::List, Fault::Status(500), 2);
        faults.arm("services", Verb::NextPage, Fault::Cut, 1);
        assert_eq!(faults.take("nodes", Verb::List), None);
        assert_eq!(faults.take("services", Verb::Watch), None);
        assert_eq!(faults.take("services", Verb::List), Some(Fault::Status(500)));
        assert_eq!(faults.take("services", Verb::NextPage), Some(Fault::Status(500)));
        assert_eq!(faults.take("services", Verb::List), None);
        assert_eq!(faults.take("services", Verb::NextPage), Some(Fault::Cut));
        assert!(faults.is_empty());
    }
}
