//! Service ports by their names, as the agent wrote them into the kernel.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use proxy_common::{
    frontend::ServiceId,
    tables::{ServiceNames, Table},
};

use super::ShowError;
use crate::datapath::{HashTable, Pins, TableError};

/// Which service ports are of interest: all ports of a Service, or one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFilter(String);

/// The text names no Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Service: write namespace/name, or namespace/name:port for the port of that name")]
pub struct ParseServiceError;

impl FromStr for ServiceFilter {
    type Err = ParseServiceError;

    fn from_str(text: &str) -> Result<Self, ParseServiceError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(ParseServiceError),
        }
    }
}

impl ServiceFilter {
    /// Whether a service port is meant. Its name may be given up to any of its separators.
    pub(super) fn admits(&self, name: &str) -> bool {
        name.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    }
}

/// The names of all service ports.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<ServiceId, String>);

impl Names {
    /// Reads them from the kernel.
    pub(super) fn read(pins: &Pins) -> Result<Self, TableError> {
        let table = HashTable::<ServiceNames>::open(pins)?;
        let named = table.entries().map(|entry| entry.map(|(id, row)| (id, text(&row))));
        named.collect::<Result<_, _>>().map(Self)
    }

    /// The name of a service port; something that says so if it has none.
    pub(super) fn of(&self, id: ServiceId) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| format!("(unnamed, id {})", id.0))
    }

    /// Whether a service port has one.
    pub(super) fn has(&self, id: ServiceId) -> bool {
        self.0.contains_key(&id)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ServiceId, &str)> {
        self.0.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// Those that a filter admits; `None` without a filter, when all are meant. Fails if there are none, as whoever
    /// asks has then mistyped the name, or the service is not here.
    pub(super) fn chosen(
        &self,
        filter: Option<&ServiceFilter>,
    ) -> Result<Option<HashSet<ServiceId>>, ShowError> {
        let Some(filter) = filter else {
            return Ok(None);
        };
        let chosen: HashSet<_> =
            self.iter().filter(|(_, name)| filter.admits(name)).map(|(id, _)| id).collect();
        if chosen.is_empty() { Err(ShowError::NoService(filter.0.clone())) } else { Ok(Some(chosen)) }
    }
}

/// `namespace/name:port`, and `protocol/family`, of the name of a service port.
pub(super) fn short(name: &str) -> (&str, &str) {
    let second = name.match_indices('/').nth(1).map_or(name.len(), |(at, _)| at);
    (&name[..second], name[second..].trim_start_matches('/'))
}

/// The name up to its padding.
fn text(name: &<ServiceNames as Table>::Value) -> String {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

#[cfg(test)]
impl<const N: usize> From<[(u32, &str); N]> for Names {
    fn from(names: [(u32, &str); N]) -> Self {
        Self(names.into_iter().map(|(id, name)| (ServiceId(id), name.to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_from_others_whose_names_begin_alike() {
        let names = Names::from([
            (1, "default/web:http/TCP/IPv4"),
            (2, "default/web/TCP/IPv4"),
            (3, "default/web2/TCP/IPv4"),
        ]);
        let chosen = |text: &str| {
            let filter: ServiceFilter = text.parse().unwrap();
            names.chosen(Some(&filter)).map(|chosen| {
                let mut ids: Vec<_> = chosen.unwrap().into_iter().map(|id| id.0).collect();
                ids.sort_unstable();
                ids
            })
        };
        assert_eq!(chosen("default/web").unwrap(), [1, 2]);
        assert_eq!(chosen("default/web:http").unwrap(), [1]);
        assert_eq!(chosen("default/web/TCP/IPv4").unwrap(), [2]);
        assert!(chosen("default/we").unwrap_err().to_string().contains("default/we"));
        assert!(names.chosen(None).unwrap().is_none());
        for text in ["", "web", "/web", "default/"] {
            assert!(text.parse::<ServiceFilter>().is_err(), "{text:?}");
        }
    }
}
