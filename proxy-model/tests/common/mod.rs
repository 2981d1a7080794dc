//! Tables in memory, and what must hold in them at every moment.

pub(crate) mod node;
pub(crate) mod objects;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use proxy_common::{
    backend::{Backend, BackendFlags, BackendId},
    filter::{AddressRoles, FilterLine, FilterPosition},
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId},
    tables::{AddressFilter, Backends, Frontends, NAME_BYTES, ServiceNames, ServiceTraffic, Slots, Table},
};
use proxy_model::{HashTableIo, Io, Model, Restored, ServicePortName, TableIo};

/// The kernel's tables as ordinary maps. Every write is checked as it happens.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) frontends: HashMap<FrontendKey, Frontend>,
    pub(crate) slots: BTreeMap<u32, BackendId>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) names: BTreeMap<ServiceId, [u8; NAME_BYTES]>,
    pub(crate) filter: BTreeMap<u32, FilterLine>,
    /// Service ids whose counters were zeroed.
    pub(crate) resets: Vec<ServiceId>,
    /// The table of each successful write and deletion, in order.
    pub(crate) log: Vec<&'static str>,
    /// Which writes, counted from now, fail.
    pub(crate) failures: HashSet<usize>,
    /// Writes that were tried.
    pub(crate) attempts: usize,
    /// When to look whether the tables are in order.
    pub(crate) checks: Checks,
}

/// When to look whether the tables are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Checks {
    /// After every write.
    #[default]
    EveryWrite,
    /// Never: they begin as garbage.
    Off,
}

#[derive(Debug, thiserror::Error)]
#[error("write refused")]
pub(crate) struct Refused;

impl Memory {
    fn attempt(&mut self, table: &'static str) -> Result<(), Refused> {
        let number = self.attempts;
        self.attempts += 1;
        if self.failures.contains(&number) {
            return Err(Refused);
        }
        self.log.push(table);
        Ok(())
    }

    fn check(&self) {
        if self.checks == Checks::EveryWrite
            && let Err(broken) = self.consistency()
        {
            panic!("after write {}: {broken}\n{}", self.attempts, self.render());
        }
    }

    /// Every frontend leads to different live backends of its own service, both addresses pass the filter, and
    /// the service has a name.
    pub(crate) fn consistency(&self) -> Result<(), String> {
        for (key, frontend) in &self.frontends {
            self.expect_role(key.address, AddressRoles::FRONTEND)?;
            if !self.names.contains_key(&frontend.service) {
                return Err(format!("{key:?} belongs to a service without a name"));
            }
            if frontend.slot_count > 0 && frontend.flags != FrontendFlags::default() {
                return Err(format!("{key:?} has backends and {:?}", frontend.flags));
            }
            let mut seen = HashSet::new();
            for slot in frontend.slot_base..frontend.slot_base + frontend.slot_count {
                let id = self.slots.get(&slot).ok_or(format!("{key:?}: slot {slot} is empty"))?;
                let backend = self.backends.get(&id.0).ok_or(format!("{key:?}: no {id:?}"))?;
                if !backend.flags.contains(BackendFlags::LIVE) {
                    return Err(format!("{key:?}: {id:?} is gone"));
                }
                if backend.service != frontend.service {
                    return Err(format!("{key:?}: {id:?} is another service's"));
                }
                if !seen.insert(id) {
                    return Err(format!("{key:?}: {id:?} is there twice"));
                }
                self.expect_role(backend.address, AddressRoles::BACKEND)?;
            }
        }
        Ok(())
    }

    fn expect_role(&self, address: proxy_common::addr::Addr, role: AddressRoles) -> Result<(), String> {
        let position = FilterPosition::of(address);
        let roles = self.filter.get(&position.line).map(|line| line.roles[position.at]);
        match roles {
            Some(roles) if roles.contains(role) => Ok(()),
            _ => Err(format!("{address} does not pass the filter as {role:?}")),
        }
    }

    /// The tables as text, without ids: one line per frontend, in order.
    pub(crate) fn render(&self) -> String {
        let mut lines: Vec<_> =
            self.frontends.iter().map(|(key, row)| self.render_frontend(key, row)).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    fn render_frontend(&self, key: &FrontendKey, row: &Frontend) -> ((std::net::SocketAddr, String), String) {
        let end = std::net::SocketAddr::new(key.address.to_ip(), key.port.to_host());
        let protocol = key.protocol.name().unwrap_or("?");
        let name = self.names.get(&row.service).and_then(ServicePortName::from_row);
        let name = name.map_or("?".to_owned(), |name| name.to_string());
        let affinity = match row.affinity {
            0 => String::new(),
            seconds => format!(" (affinity {seconds} s)"),
        };
        let mut line = format!("{end}/{protocol} {name}{affinity} ->");
        let mut backends: Vec<_> = (row.slot_base..row.slot_base + row.slot_count)
            .map(|slot| self.slots.get(&slot).and_then(|id| self.backends.get(&id.0)))
            .map(|backend| {
                backend.map_or("?".to_owned(), |backend| {
                    let end = std::net::SocketAddr::new(backend.address.to_ip(), backend.port.to_host());
                    let place = match backend.flags {
                        flags if !flags.contains(BackendFlags::LIVE) => " (gone)",
                        flags if flags.contains(BackendFlags::LOCAL) => " (local)",
                        _ => "",
                    };
                    format!("{end}{place}")
                })
            })
            .collect();
        backends.sort();
        if backends.is_empty() {
            let silent = row.flags.contains(FrontendFlags::DROP_WHEN_EMPTY);
            line.push_str(if silent { " drop" } else { " refuse" });
        } else {
            write!(line, " {}", backends.join(", ")).unwrap();
        }
        line.push('\n');
        ((end, protocol.to_owned()), line)
    }

    /// What a restarted agent would find.
    pub(crate) fn restored(&self) -> Restored {
        Restored {
            frontends: self.frontends.iter().map(|(&key, &row)| (key, row)).collect(),
            slots: self.slots.iter().map(|(&slot, &id)| (slot, id)).collect(),
            backends: self.backends.iter().map(|(&id, &row)| (BackendId(id), row)).collect(),
            names: self.names.iter().map(|(&id, &row)| (id, row)).collect(),
            filter: self.filter.iter().map(|(&number, &line)| (number, line)).collect(),
        }
    }

    /// Live backends, whether a frontend leads to them or not.
    pub(crate) fn live(&self) -> usize {
        self.backends.values().filter(|backend| backend.flags.contains(BackendFlags::LIVE)).count()
    }
}

impl Io for Memory {
    type Error = Refused;

    fn reset_traffic(&mut self, service: ServiceId) -> Result<(), Refused> {
        self.attempt(ServiceTraffic::NAME)?;
        if self.checks == Checks::EveryWrite {
            assert!(self.frontends.values().all(|row| row.service != service), "{service:?} is counting");
        }
        self.resets.push(service);
        Ok(())
    }
}

macro_rules! memory_table {
    ($table:ty, $field:ident) => {
        impl TableIo<$table> for Memory {
            fn put(
                &mut self,
                key: &<$table as Table>::Key,
                value: &<$table as Table>::Value,
            ) -> Result<(), Refused> {
                self.attempt(<$table>::NAME)?;
                self.$field.insert(*key, *value);
                self.check();
                Ok(())
            }
        }
    };
}

memory_table!(AddressFilter, filter);
memory_table!(Backends, backends);
memory_table!(Slots, slots);
memory_table!(Frontends, frontends);
memory_table!(ServiceNames, names);

impl HashTableIo<Frontends> for Memory {
    fn delete(&mut self, key: &FrontendKey) -> Result<(), Refused> {
        self.attempt(Frontends::NAME)?;
        self.frontends.remove(key);
        self.check();
        Ok(())
    }
}

impl HashTableIo<ServiceNames> for Memory {
    fn delete(&mut self, key: &ServiceId) -> Result<(), Refused> {
        self.attempt(ServiceNames::NAME)?;
        self.names.remove(key);
        self.check();
        Ok(())
    }
}

/// Plans and commits, and insists that nothing fails. Returns what did not fit.
pub(crate) fn settle(model: &mut Model, now: Duration, memory: &mut Memory) -> Vec<String> {
    let problems = model.plan(now).iter().map(ToString::to_string).collect();
    let errors = model.commit(now, memory);
    assert!(errors.is_empty(), "{errors:?}");
    problems
}
