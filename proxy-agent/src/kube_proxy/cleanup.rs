//! Removes what kube-proxy left in the kernel, and looks whether it is gone.

use std::io;

use super::{
    chains::{self, Plan, TABLES, is_kube_proxys},
    hold, ipvs,
    leftovers::{Leftover, OWN_TABLE, in_legacy, in_netfilter},
    legacy::{Content, Legacy},
    nftables::{Chain, Deletion, Listed, NetfilterFamily, NfTables, Table},
    outcome::{Outcome, Removed, Unremoved},
};

/// Removes everything that kube-proxy may have left in the network namespace of the calling thread, in any of its modes, and
/// looks whether it is gone. What can be removed is, whatever else cannot be.
///
/// Connections that it translated are conntrack's, and go on; those of IPVS end.
#[must_use]
pub fn cleanup() -> Outcome {
    let mut outcome = Outcome::default();
    match Netfilter::read() {
        Ok(mut netfilter) => {
            Legacy::BOTH.into_iter().for_each(|legacy| outcome.clean_family(&mut netfilter, legacy));
        }
        Err(source) => outcome.unremoved.push(unseen("netfilter's chains and rules")(source)),
    }
    // Rules refer to sets.
    outcome.clean_ipvs();
    outcome.clean_sets();
    if outcome.unremoved.is_empty() {
        outcome.unremoved = left();
    }
    outcome
}

/// What nf_tables has.
struct Netfilter {
    kernel: NfTables,
    chains: Vec<Chain>,
    rules: Vec<Listed>,
}

impl Netfilter {
    fn read() -> io::Result<Self> {
        let mut kernel = NfTables::open()?;
        Ok(Self { chains: kernel.chains()?, rules: kernel.rules()?, kernel })
    }

    fn chains_of(&self, table: &Table) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(move |chain| chain.table == *table)
    }

    fn rules_of(&self, table: &Table) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |listed| listed.table == *table)
    }

    /// Whether a rule that is not kube-proxy's translates addresses of a family.
    fn translates_for_others(&self, family: NetfilterFamily) -> bool {
        let others = self.rules.iter().filter(|Listed { table, rule, .. }| {
            let is_own = table.name == OWN_TABLE
                || TABLES.contains(&table.name.as_str()) && is_kube_proxys(&rule.chain);
            [family, NetfilterFamily::INET].contains(&table.family) && !is_own
        });
        others.into_iter().any(|listed| listed.translates)
    }

    fn change(&mut self, table: &Table, deletions: &[Deletion], holding: bool) -> Result<(), Unremoved> {
        let besides = if holding { hold::requests(table.family) } else { Vec::new() };
        self.kernel.change(table, deletions, besides).map_err(|(number, source)| {
            let what = number.and_then(|number| deletions.get(number));
            let what = what.map_or_else(|| PART.to_owned(), ToString::to_string);
            Unremoved::Failed { place: format!("table {table}"), what, source }
        })
    }

    /// Removes kube-proxy's own table. If connections need it, what they need takes its place.
    fn remove_table(&mut self, table: &Table, holding: bool) -> Result<Done, Unremoved> {
        if holding && hold::is_all(self.chains_of(table)) {
            return Ok(Done::default());
        }
        self.change(table, &[Deletion::Table], holding)?;
        let (chains, rules) = (self.chains_of(table).count(), self.rules_of(table).count());
        Ok(Done::removed(Removed::Table { table: table.to_string(), chains, rules }))
    }

    /// Removes kube-proxy's chains from a table of iptables.
    fn remove_chains(&mut self, table: &Table) -> Result<Done, Unremoved> {
        let own: Vec<_> = self.chains_of(table).map(|chain| (chain.name.clone(), chain.is_base)).collect();
        let rules: Vec<_> = self.rules_of(table).map(|listed| listed.rule.clone()).collect();
        let plan = chains::plan(&own, &rules);
        let jumps = plan.jumps.iter().map(|rule| Deletion::Rule(rule.chain.clone(), rule.id));
        // A chain goes when nothing leads to it, not even from a chain that goes as well.
        let rules = plan.chains.iter().cloned().map(Deletion::Rules);
        let chains = plan.chains.iter().cloned().map(Deletion::Chain);
        let deletions: Vec<_> = jumps.chain(rules).chain(chains).collect();
        if !deletions.is_empty() {
            self.change(table, &deletions, false)?;
        }
        Ok(Done::plan(&table.to_string(), plan))
    }
}

impl Outcome {
    /// The rules of a family.
    fn clean_family(&mut self, netfilter: &mut Netfilter, legacy: Legacy) {
        let family = legacy.family;
        let contents = self.legacy_contents(legacy);
        let mut leftovers = in_netfilter(&netfilter.chains);
        leftovers.retain(|leftover| leftover.table().family == family);
        let is_in_legacy =
            |(_, content): &(_, Content)| content.chains.iter().any(|(name, _)| is_kube_proxys(name));
        if leftovers.is_empty() && !contents.iter().any(is_in_legacy) {
            return;
        }
        let others_translate = netfilter.translates_for_others(family)
            || contents.iter().any(|(_, content)| content.translates_for_others());
        let connections =
            if others_translate { Ok(0) } else { hold::connections(family).map(|found| found.len()) };
        let connections = match connections {
            Ok(connections) => connections,
            Err(source) => {
                let what =
                    format!("the connections that rules of family {family} translated, so its rules stay");
                return self.unremoved.push(unseen(&what)(source));
            }
        };
        let (table, holding) = (hold::table(family), connections > 0);
        // Before anything goes.
        if holding
            && !leftovers.contains(&Leftover::Table(table.clone()))
            && let Err(error) = netfilter.change(&table, &[], true)
        {
            return self.unremoved.push(error);
        }
        for leftover in leftovers {
            self.add(match &leftover {
                Leftover::Table(table) => netfilter.remove_table(table, holding),
                Leftover::Chains { table, .. } => netfilter.remove_chains(table),
            });
        }
        for (name, content) in contents {
            self.add(remove_legacy(legacy, name, &content));
        }
        if holding {
            self.unremoved.push(Unremoved::Held { table: table.to_string(), connections });
        }
    }

    /// The tables of the legacy iptables, as far as they can be read.
    fn legacy_contents(&mut self, legacy: Legacy) -> Vec<(&'static str, Content)> {
        let tables = legacy.tables();
        let mut contents = Vec::new();
        for table in &tables {
            match legacy.read(table) {
                Ok(content) => contents.push((*table, content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.unremoved.push(Unremoved::Legacy {
                        family: legacy.family.to_string(),
                        tables: tables.join(", "),
                        program: legacy.program,
                        command: legacy.command(),
                    });
                    return Vec::new();
                }
                Err(source) => self.unremoved.push(unseen(&legacy.place(table))(source)),
            }
        }
        contents
    }

    /// IPVS, if it is kube-proxy's: others balance by it, too, and do not have the device.
    fn clean_ipvs(&mut self) {
        if !ipvs::has_device() {
            return;
        }
        let failed = |what: String| |source| Unremoved::Failed { place: "IPVS".to_owned(), what, source };
        let services = ipvs::services();
        if services > 0 {
            match ipvs::flush() {
                Ok(()) => self.removed.push(Removed::Services(services)),
                Err(source) => return self.unremoved.push(failed("its services".to_owned())(source)),
            }
        }
        match ipvs::delete_device() {
            Ok(()) => self.removed.push(Removed::Device),
            Err(source) => self.unremoved.push(failed(format!("device {}", ipvs::DEVICE))(source)),
        }
    }

    fn clean_sets(&mut self) {
        let sets = match ipvs::sets() {
            Ok(sets) => sets,
            Err(source) => return self.unremoved.push(unseen("ipsets")(source)),
        };
        let mut count = 0;
        for set in sets {
            match ipvs::destroy(&set) {
                Ok(()) => count += 1,
                Err(source) => {
                    self.unremoved.push(Unremoved::Failed { place: "ipset".to_owned(), what: set, source });
                }
            }
        }
        self.removed.extend((count > 0).then_some(Removed::Sets(count)));
    }

    fn add(&mut self, done: Result<Done, Unremoved>) {
        match done {
            Ok(Done { removed, needed }) => {
                self.removed.extend(removed);
                self.unremoved.extend(needed);
            }
            Err(error) => self.unremoved.push(error),
        }
    }
}

/// What was done about a table.
#[derive(Default)]
struct Done {
    removed: Option<Removed>,
    /// What stays.
    needed: Vec<Unremoved>,
}

impl Done {
    fn removed(removed: Removed) -> Self {
        Self { removed: Some(removed), needed: Vec::new() }
    }

    /// That a plan was carried out.
    fn plan<Id>(table: &str, plan: Plan<Id>) -> Self {
        let (chains, jumps) = (plan.chains.len(), plan.jumps.len());
        let removed = Removed::Chains { table: table.to_owned(), chains, rules: plan.rules, jumps };
        let needed = plan.needed.into_iter();
        let needed = needed.map(|(chain, by)| Unremoved::Needed { table: table.to_owned(), chain, by });
        Self { removed: (chains > 0).then_some(removed), needed: needed.collect() }
    }
}

fn unseen(what: &str) -> impl FnOnce(io::Error) -> Unremoved {
    let what = what.to_owned();
    move |source| Unremoved::Unseen { what, source }
}

fn remove_legacy(legacy: Legacy, table: &str, content: &Content) -> Result<Done, Unremoved> {
    let plan = chains::plan(&content.chains, &content.rules);
    if !plan.chains.is_empty() {
        legacy.remove(table, &plan).map_err(|source| Unremoved::Failed {
            place: format!("table {}", legacy.place(table)),
            what: PART.to_owned(),
            source,
        })?;
    }
    Ok(Done::plan(&legacy.place(table), plan))
}

/// What is to be removed from a table, as a whole.
const PART: &str = "kube-proxy's part";

/// What is there although it was removed.
fn left() -> Vec<Unremoved> {
    let chains = match NfTables::open().and_then(|mut kernel| kernel.chains()) {
        Ok(chains) => chains,
        Err(source) => return vec![unseen("netfilter's chains")(source)],
    };
    let mut back: Vec<_> = in_netfilter(&chains).iter().map(|leftover| format!("{leftover} is")).collect();
    let legacy = Legacy::BOTH.into_iter().flat_map(|legacy| in_legacy(legacy).unwrap_or_default());
    back.extend(legacy.map(|found| format!("{found} is")));
    back.extend(ipvs::has_device().then(|| format!("device {} is", ipvs::DEVICE)));
    back.extend(ipvs::sets().unwrap_or_default().into_iter().map(|set| format!("ipset {set} is")));
    back.into_iter().map(Unremoved::Back).collect()
}
