//! From objects to what the tables should contain.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use super::{Model, Stage};
use proxy_common::tables::{ServiceNames, Table as _};

use crate::{
    change::ObjectName,
    claims::of_service,
    error::{Misfit, PlanError},
    health::{HealthCheck, HealthCheckName},
    name::{Family, ServicePortName, Transport},
    programmed::{Counters, Programmed},
    service::ServicePort,
    state::ParsedService,
    tables::Tables,
    target::Target,
};

impl Model {
    /// Works out what the tables should contain. Returns what is newly wrong with service ports.
    pub fn plan(&mut self, now: Duration) -> Vec<PlanError> {
        if !self.is_synced() {
            return Vec::new();
        }
        let mut dirty = self.state.take_dirty();
        if self.tables.settle(now) {
            dirty.append(&mut self.unfit);
        }
        let mut news = Vec::new();
        if self.stage == Stage::Waiting {
            dirty.extend(self.programmed.keys().map(|port| port.service.clone()));
        }
        // All claims first: nobody is planned for a frontend that another Service of the same batch takes.
        let affected: Vec<ObjectName> = dirty.iter().flat_map(|service| self.claim(service)).collect();
        dirty.extend(affected);
        while let Some(service) = dirty.pop_first() {
            self.plan_service(&service, now, &mut dirty, &mut news);
        }
        self.plan_node(now);
        self.state.pods.plan(&mut self.tables.pods);
        if self.stage == Stage::Waiting {
            self.leftovers.collect(&mut self.tables, &self.programmed, now);
            self.retired.extend(Transport::ALL);
            self.stage = Stage::Running;
        }
        news
    }

    /// Works out what the address table should say about the node.
    fn plan_node(&mut self, now: Duration) {
        let readdressed = mem::take(&mut self.readdressed) | self.state.take_node_addresses_changed();
        let Some(node_addresses) = self.node_addresses.as_ref().filter(|_| readdressed) else {
            return;
        };
        let Tables { addresses, filter, .. } = &mut self.tables;
        let rows = addresses.of_node(node_addresses, &self.options.node_port_addresses, self.state.node());
        addresses.set_node(rows, filter, now);
    }

    /// Enters the claims of all ports of a Service. Returns the Services that lost or gained a frontend by it.
    fn claim(&mut self, service: &ObjectName) -> Vec<ObjectName> {
        let Self { state, claims, options, .. } = self;
        let parsed = state.service(service);
        let wanted = wanted_ports(parsed);
        let created = parsed.and_then(|service| service.created.as_ref());
        let ports: BTreeSet<ServicePortName> =
            claims.ports(service).chain(wanted.keys().copied()).cloned().collect();
        let mut affected = Vec::new();
        for port in ports {
            let frontends = wanted.get(&port).map(|wanted| wanted.frontends(options.external_ips));
            let frontends = frontends.unwrap_or_default();
            affected.extend(claims.set(&port, created, &frontends).into_iter().map(|other| other.service));
        }
        affected
    }

    /// Plans all ports of a Service. Services that gain a frontend because it did not fit become dirty.
    fn plan_service(
        &mut self,
        service: &ObjectName,
        now: Duration,
        dirty: &mut BTreeSet<ObjectName>,
        news: &mut Vec<PlanError>,
    ) {
        let parsed = self.state.service(service).cloned();
        let wanted = wanted_ports(parsed.as_ref());
        let programmed = of_service(&self.programmed, service).map(|(port, _)| port);
        let troubled = of_service(&self.problems, service).map(|(port, _)| port);
        let ports: BTreeSet<ServicePortName> =
            programmed.chain(troubled).chain(wanted.keys().copied()).cloned().collect();
        self.unfit.remove(service);
        for port in ports {
            let (target, mut problems) =
                wanted.get(&port).map(|wanted| self.entitled(wanted)).unwrap_or_default();
            self.silences.set(&port, &target);
            if let Err(misfit) = self.plan_port(&port, &target, now) {
                // Room may come by itself, a shorter name does not.
                if misfit != Misfit::NameTooLong {
                    self.unfit.insert(service.clone());
                }
                problems.push(misfit);
                if !self.programmed.contains_key(&port) {
                    let affected = self.claims.set(&port, None, &[]);
                    dirty.extend(affected.into_iter().map(|other| other.service));
                }
            }
            self.note(port, problems, news);
        }
        self.plan_health_checks(service, parsed.as_ref());
    }

    /// Works out what load balancers are to be told about a Service.
    fn plan_health_checks(&mut self, service: &ObjectName, parsed: Option<&ParsedService>) {
        for family in Family::ALL {
            let slices = || self.state.slices(service);
            let check = parsed.and_then(|parsed| HealthCheck::of(parsed, family, slices));
            let name = HealthCheckName { service: service.clone(), family };
            self.health_checks.set(name, check);
        }
    }

    /// What a service port may have: the frontends that it won, and the rest if it won any.
    fn entitled(&self, wanted: &ServicePort) -> (Target, Vec<Misfit>) {
        let port = &wanted.name;
        let mut frontends = wanted.frontends(self.options.external_ips);
        let mut problems = Vec::new();
        frontends.retain(|&(frontend, _)| match self.claims.holder(&frontend) {
            Some(owner) if owner != port => {
                problems.push(Misfit::FrontendTaken { frontend, owner: owner.clone() });
                false
            }
            _ => true,
        });
        if frontends.is_empty() {
            return (Target::default(), problems);
        }
        let slices = self.state.slices(&port.service);
        (Target::new(wanted, &frontends, slices, self.state.node(), &self.options), problems)
    }

    fn plan_port(&mut self, port: &ServicePortName, target: &Target, now: Duration) -> Result<(), Misfit> {
        let Self { programmed, tables, claims, pending, resets, leads_by_hash, .. } = self;
        if let Some(entry) = programmed.get_mut(port) {
            entry.aim(target, now, tables)?;
            *resets |= entry.resets();
            *leads_by_hash |= entry.leads_by_hash();
            for &key in entry.dropped.iter().filter(|key| claims.holder(key).is_none()) {
                tables.unwant_frontend(key, now);
            }
        } else if !target.frontends.is_empty() {
            let row = port.to_row().ok_or(Misfit::NameTooLong)?;
            let ids = tables.service_ids.take(1).unwrap_or_default();
            let &[id] = &ids[..] else {
                return Err(Misfit::NoRoom { table: ServiceNames::NAME, wanted: 1 });
            };
            let mut entry = Programmed::new(id, Counters::Stale);
            if let Err(error) = entry.aim(target, now, tables) {
                tables.service_ids.put_back(id);
                return Err(error);
            }
            *resets |= entry.resets();
            *leads_by_hash |= entry.leads_by_hash();
            tables.names.want(id, row);
            programmed.insert(port.clone(), entry);
        } else {
            return Ok(());
        }
        pending.insert(port.clone());
        Ok(())
    }

    /// Replaces what is known to be wrong with a service port.
    fn note(&mut self, port: ServicePortName, problems: Vec<Misfit>, news: &mut Vec<PlanError>) {
        let before = self.problems.remove(&port).unwrap_or_default();
        for reason in problems.iter().filter(|reason| !before.iter().any(|known| known.is_like(reason))) {
            news.push(PlanError { port: port.clone(), reason: reason.clone() });
        }
        if !problems.is_empty() {
            self.problems.insert(port, problems);
        }
    }
}

/// The service ports of a Service, if it is there, by name.
fn wanted_ports(service: Option<&ParsedService>) -> BTreeMap<&ServicePortName, &ServicePort> {
    service.iter().flat_map(|service| &service.ports).map(|port| (&port.name, port)).collect()
}
