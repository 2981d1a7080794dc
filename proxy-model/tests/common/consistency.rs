//! What must hold in the tables after every write.

use std::collections::HashSet;

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{BackendFlags, BackendId},
    filter::{AddressRoles, FilterPosition},
    frontend::{Frontend, FrontendFlags, FrontendKey, SlotRun},
};

use super::{Checks, Memory};

impl Memory {
    pub(super) fn check(&self) {
        if self.checks == Checks::EveryWrite
            && let Err(broken) = self.consistency()
        {
            panic!("after write {}: {broken}\n{}", self.attempts, self.render());
        }
    }

    /// Every frontend leads to live backends of its own service, inside and outside, to each once unless tables choose; all addresses pass the
    /// filter; the service has a name; who asks for source ranges has some.
    pub(crate) fn consistency(&self) -> Result<(), String> {
        for (key, frontend) in &self.frontends {
            if !key.is_node_port() {
                self.expect_role(key.address, AddressRoles::FRONTEND)?;
            }
            if !self.names.contains_key(&frontend.service) {
                return Err(format!("{key:?} belongs to a service without a name"));
            }
            let has = |flag| frontend.flags.contains(flag);
            for (run, flag) in [
                (frontend.slots, FrontendFlags::DROP_WHEN_EMPTY),
                (frontend.outside, FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY),
            ] {
                if run.count > 0 && has(flag) {
                    return Err(format!("{key:?} has backends and {:?}", frontend.flags));
                }
                self.check_run(key, frontend, run)?;
            }
            if frontend.outside != SlotRun::default()
                && !has(FrontendFlags::BY_ORIGIN)
                && !has(FrontendFlags::DSR)
            {
                return Err(format!("{key:?} has backends for nobody"));
            }
            if has(FrontendFlags::RESTRICTED)
                && self.ranges.keys().all(|range| range.data.service != frontend.service)
            {
                return Err(format!("{key:?} keeps everybody out"));
            }
        }
        for range in self.ranges.keys() {
            if !self.names.contains_key(&range.data.service) {
                return Err(format!("{range:?} belongs to a service without a name"));
            }
        }
        self.check_addresses()
    }

    fn check_run(&self, key: &FrontendKey, frontend: &Frontend, run: SlotRun) -> Result<(), String> {
        let mut seen = HashSet::new();
        for slot in run.base..run.base + run.count {
            let id = self.slots.get(&slot).ok_or(format!("{key:?}: slot {slot} is empty"))?;
            let backend = self.backends.get(&id.0).ok_or(format!("{key:?}: no {id:?}"))?;
            if !backend.flags.contains(BackendFlags::LIVE) {
                return Err(format!("{key:?}: {id:?} is gone"));
            }
            if backend.service != frontend.service {
                return Err(format!("{key:?}: {id:?} is another service's"));
            }
            if !seen.insert(id) && !frontend.flags.contains(FrontendFlags::MAGLEV) {
                return Err(format!("{key:?}: {id:?} is there twice"));
            }
            self.expect_role(backend.address, AddressRoles::BACKEND)?;
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), String> {
        for (&address, flags) in &self.addresses {
            let has = |flag| flags.contains(flag);
            if *flags == AddressFlags::default() || has(AddressFlags::NODE_PORTS) && !has(AddressFlags::NODE)
            {
                return Err(format!("{address} is {flags:?}"));
            }
            if address.to_ip().is_loopback() {
                return Err(format!("{address} is met by no packet"));
            }
            if has(AddressFlags::NODE) {
                self.expect_role(address, AddressRoles::NODE)?;
            }
            if has(AddressFlags::CLUSTER_IP) {
                self.expect_role(address, AddressRoles::FRONTEND)?;
            }
        }
        Ok(())
    }

    fn expect_role(&self, address: Addr, role: AddressRoles) -> Result<(), String> {
        let position = FilterPosition::of(address);
        let roles = self.filter.get(&position.line).map(|line| line.roles[position.at]);
        match roles {
            Some(roles) if roles.contains(role) => Ok(()),
            _ => Err(format!("{address} does not pass the filter as {role:?}")),
        }
    }

    /// Once everything is written: backends are marked as members of exactly the sets that frontends lead to.
    pub(crate) fn marks(&self) -> Result<(), String> {
        for (key, frontend) in &self.frontends {
            let of_slots = if frontend.flags.contains(FrontendFlags::LOCAL_SET) {
                BackendFlags::LOCAL_SET
            } else {
                BackendFlags::CLUSTER_SET
            };
            let mut runs = vec![(frontend.slots, of_slots)];
            if frontend.flags.intersects(FrontendFlags::BY_ORIGIN.with(FrontendFlags::DSR)) {
                runs.push((frontend.outside, BackendFlags::LOCAL_SET));
            }
            for (run, flag) in runs {
                let slots = run.base..run.base + run.count;
                let led_to: HashSet<BackendId> = slots.map(|slot| self.slots[&slot]).collect();
                let members = self.backends.iter().filter(|(_, row)| row.service == frontend.service);
                let marked: HashSet<BackendId> = members
                    .filter(|(_, row)| row.flags.contains(flag.with(BackendFlags::LIVE)))
                    .map(|(&id, _)| BackendId(id))
                    .collect();
                if led_to != marked {
                    return Err(format!("{key:?} leads to {led_to:?}, marked are {marked:?}"));
                }
            }
        }
        Ok(())
    }
}
