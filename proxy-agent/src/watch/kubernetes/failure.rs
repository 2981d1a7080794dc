//! What can go wrong with a list or a watch, and what is known afterwards.

use std::{error::Error, time::Duration};

use kube::core::Status;

/// Why a list or a watch failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot list")]
    List(#[source] kube::Error),
    #[error("cannot watch")]
    Watch(#[source] kube::Error),
    #[error("the watch broke")]
    Broken(#[source] kube::Error),
    #[error("the server ended the watch")]
    Ended(#[source] Box<Status>),
    #[error("the watch ended as soon as it began")]
    Short,
    #[error("no answer in {0:?}")]
    Silent(Duration),
    #[error("no metadata.resourceVersion in {0}")]
    NoVersion(&'static str),
}

/// Whether a watch can go on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continuity {
    /// Nothing was missed; the connection was at fault, or access is denied for now.
    Kept,
    /// The server has a problem, perhaps with this very version.
    Doubtful,
    /// Something was missed.
    Lost,
}

impl Failure {
    pub(super) fn continuity(&self) -> Continuity {
        match self {
            Self::List(_) | Self::NoVersion(_) => Continuity::Lost,
            Self::Watch(kube::Error::Api(status)) => after(status),
            Self::Ended(status) => after(status),
            Self::Watch(_) | Self::Silent(_) | Self::Broken(kube::Error::ReadEvents(_)) => Continuity::Kept,
            // What could not be read was an event.
            Self::Broken(_) => Continuity::Lost,
            Self::Short => Continuity::Doubtful,
        }
    }

    /// The version that was asked for is no longer known to the server.
    pub(super) fn is_gone(&self) -> bool {
        self.status().is_some_and(|status| status.code == GONE)
    }

    /// The same for failures that differ only in details.
    pub(super) fn class(&self) -> String {
        match (self, self.status()) {
            (_, Some(status)) => status.code.to_string(),
            (Self::List(kube::Error::SerdeError(_)) | Self::Broken(kube::Error::SerdeError(_)), _) => {
                "garbage".into()
            }
            (Self::List(_) | Self::Watch(_) | Self::Broken(_) | Self::Short | Self::Silent(_), _) => {
                "connection".into()
            }
            (Self::Ended(_) | Self::NoVersion(_), _) => self.to_string(),
        }
    }

    /// The message with all causes; many of them keep theirs to themselves.
    pub(super) fn chain(&self) -> String {
        let mut message = self.to_string();
        if self.status().is_some_and(|status| status.code == 0) {
            // To kube's client any object that is no event is a status, of which all fields are optional.
            return format!("{message}: neither an event nor a status");
        }
        if let Some(Status { code, reason, message: cause, .. }) = self.status() {
            return format!("{message}: {cause} ({reason}, code {code})");
        }
        let mut source = self.source();
        while let Some(error) = source {
            let cause = error.to_string();
            if !message.contains(&cause) {
                message.push_str(": ");
                message.push_str(&cause);
            }
            source = error.source();
        }
        message
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Ended(status) => Some(status),
            Self::List(kube::Error::Api(status))
            | Self::Watch(kube::Error::Api(status))
            | Self::Broken(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }
}

fn after(status: &Status) -> Continuity {
    match status.code {
        // Unauthorized, forbidden, timeout, too many requests: of the version nothing is said.
        401 | 403 | 408 | 429 => Continuity::Kept,
        // Gone, but also any other request that the server will never like.
        400..500 => Continuity::Lost,
        _ => Continuity::Doubtful,
    }
}

const GONE: u16 = 410;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn status(code: u16) -> Box<Status> {
        Box::new(Status { code, ..Status::failure("message", "Reason") })
    }

    #[test]
    fn gone_as_status_and_as_event_is_a_gap() {
        assert_eq!(Failure::Watch(kube::Error::Api(status(410))).continuity(), Continuity::Lost);
        assert_eq!(Failure::Ended(status(410)).continuity(), Continuity::Lost);
    }

    #[test]
    fn denial_and_overload_are_no_gap() {
        for code in [401, 403, 429] {
            assert_eq!(Failure::Watch(kube::Error::Api(status(code))).continuity(), Continuity::Kept);
        }
    }

    #[test]
    fn server_errors_are_doubtful() {
        assert_eq!(Failure::Ended(status(500)).continuity(), Continuity::Doubtful);
        assert_eq!(Failure::Watch(kube::Error::Api(status(503))).continuity(), Continuity::Doubtful);
    }

    #[test]
    fn unreadable_event_is_a_gap_and_a_broken_connection_is_not() {
        let garbage = serde_json::from_str::<u8>("x").unwrap_err();
        assert_eq!(Failure::Broken(kube::Error::SerdeError(garbage)).continuity(), Continuity::Lost);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(Failure::Broken(kube::Error::ReadEvents(reset)).continuity(), Continuity::Kept);
    }

    #[test]
    fn chain_names_each_cause_once() {
        let reset = io::Error::other(io::Error::other("reset by peer"));
        assert_eq!(
            Failure::Ended(status(500)).chain(),
            "the server ended the watch: message (Reason, code 500)"
        );
        assert_eq!(
            Failure::Broken(kube::Error::ReadEvents(reset)).chain(),
            "the watch broke: Error reading events stream: reset by peer"
        );
    }
}
