//! The pods of this node and the cgroups that kubelet makes for them, brought together by uid. Either may come first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    mem,
};

use proxy_common::{
    pod::{CgroupId, Levels, POD_NAME_BYTES, PodEntry, PodReason, PodReasons},
    tables,
};

use crate::{
    change::{Event, ObjectName, PodCgroup},
    delta::Delta,
    pod::{Claim, PodUid},
};

/// What is known of pods and of their cgroups.
#[derive(Debug)]
pub(crate) struct Pods {
    /// Whether anybody asks.
    follow: bool,
    records: HashMap<PodUid, Record>,
    /// Under which uid a pod is known: deletions name nothing but the name.
    names: HashMap<ObjectName, PodUid>,
    cgroups: HashMap<CgroupId, PodUid>,
    /// Cgroups whose rows may have to change.
    dirty: BTreeSet<CgroupId>,
    /// Whether rows for cgroups that are not there may have to go.
    collect: bool,
    /// `None` until the cgroups have been listed.
    levels: Option<Levels>,
}

/// A pod, its cgroups, or both.
#[derive(Debug, Default)]
struct Record {
    /// Kept for as long as there is a cgroup: a pod's last processes may outlive its object.
    known: Option<Known>,
    /// With their levels.
    cgroups: BTreeMap<CgroupId, u8>,
}

/// What a pod's object says.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: ObjectName,
    claim: Claim,
    /// `Unknown`: no row is needed.
    reason: PodReason,
}

impl Pods {
    /// Nothing is known yet, and nothing will be if nobody asks.
    pub(crate) fn new(follow: bool) -> Self {
        Self {
            follow,
            records: HashMap::new(),
            names: HashMap::new(),
            cgroups: HashMap::new(),
            dirty: BTreeSet::new(),
            collect: !follow,
            levels: (!follow).then_some(Levels::NONE),
        }
    }

    /// Whether anybody asks about pods.
    pub(crate) const fn are_followed(&self) -> bool {
        self.follow
    }

    /// The levels that known pods' cgroups are at; `None` before anybody has said which cgroups there are.
    pub(crate) const fn levels(&self) -> Option<Levels> {
        self.levels
    }

    /// The pods that there are.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.names.keys()
    }

    /// Takes note of a pod. Fails if its uid is another's: only a static pod's can be, which anybody may write down.
    pub(crate) fn store(
        &mut self,
        name: &ObjectName,
        uid: PodUid,
        claim: Claim,
        reason: PodReason,
    ) -> Result<(), UidTaken> {
        if self.names.get(name).is_some_and(|before| *before != uid) {
            self.remove(name);
        }
        let record = self.records.entry(uid.clone()).or_default();
        let is_others = |known: &Known| known.name != *name && known.claim == Claim::Own;
        if claim == Claim::Static && record.known.as_ref().is_some_and(is_others) {
            return Err(UidTaken);
        }
        let known = Some(Known { name: name.clone(), claim, reason });
        if record.known != known {
            record.known = known;
            self.dirty.extend(record.cgroups.keys());
        }
        self.names.insert(name.clone(), uid);
        Ok(())
    }

    /// A pod is gone, though perhaps not its processes.
    pub(crate) fn remove(&mut self, name: &ObjectName) {
        if let Some(uid) = self.names.remove(name) {
            self.forget(uid);
        }
    }

    /// Takes note of what happened to cgroups.
    pub(crate) fn apply(&mut self, event: Event<PodCgroup, CgroupId>) {
        match event {
            Event::Apply(cgroup) => self.store_cgroup(cgroup),
            Event::Delete(id) => self.remove_cgroup(id),
            Event::Replace(all) => {
                let listed: BTreeSet<CgroupId> = all.iter().map(|cgroup| cgroup.id).collect();
                let known = self.cgroups.keys().copied();
                let gone: Vec<CgroupId> = known.filter(|id| !listed.contains(id)).collect();
                gone.into_iter().for_each(|id| self.remove_cgroup(id));
                all.into_iter().for_each(|cgroup| self.store_cgroup(cgroup));
                self.collect = true;
                self.levels.get_or_insert_default();
            }
        }
    }

    fn store_cgroup(&mut self, cgroup: PodCgroup) {
        let PodCgroup { id, pod, level } = cgroup;
        self.records.entry(pod.clone()).or_default().cgroups.insert(id, level);
        self.cgroups.insert(id, pod);
        self.dirty.insert(id);
    }

    fn remove_cgroup(&mut self, id: CgroupId) {
        if let Some(uid) = self.cgroups.remove(&id) {
            if let Some(record) = self.records.get_mut(&uid) {
                record.cgroups.remove(&id);
            }
            self.dirty.insert(id);
            self.forget(uid);
        }
    }

    /// Forgets a pod of which nothing is left.
    fn forget(&mut self, uid: PodUid) {
        if let Entry::Occupied(entry) = self.records.entry(uid) {
            let Record { known, cgroups } = entry.get();
            let exists = known.as_ref().is_some_and(|known| self.names.get(&known.name) == Some(entry.key()));
            if cgroups.is_empty() && !exists {
                entry.remove();
            }
        }
    }

    /// Whether the rows may have to change.
    pub(crate) fn is_dirty(&self) -> bool {
        self.collect || !self.dirty.is_empty()
    }

    /// Works out which rows there should be.
    pub(crate) fn plan(&mut self, rows: &mut Delta<tables::Pods>) {
        if !self.is_dirty() {
            return;
        }
        if mem::take(&mut self.collect) {
            self.dirty.extend(rows.entries().map(|(id, _)| *id));
        }
        for id in mem::take(&mut self.dirty) {
            match self.record(id) {
                Some(Record { known: Some(known), .. }) if known.reason != PodReason::Unknown => {
                    rows.want(id, known.row());
                }
                // An earlier run may have known the pod.
                Some(Record { known: None, .. }) => {}
                _ => rows.unwant(id),
            }
        }
        if self.levels.is_some() {
            let with_row = self.cgroups.keys().filter(|id| rows.wanted(id).is_some());
            let level = |id: &CgroupId| self.record(*id)?.cgroups.get(id).copied();
            let levels: BTreeSet<u8> = with_row.filter_map(level).collect();
            self.levels = Some(Levels::new(levels));
        }
    }

    fn record(&self, id: CgroupId) -> Option<&Record> {
        self.records.get(self.cgroups.get(&id)?)
    }
}

/// A pod names the uid of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UidTaken;

impl Known {
    fn row(&self) -> PodEntry {
        let mut name = [0; POD_NAME_BYTES];
        for (to, from) in name.iter_mut().zip(self.name.to_string().bytes()) {
            *to = from;
        }
        PodEntry { reason: PodReasons::of(self.reason), name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "web".to_owned(), name: name.to_owned() }
    }

    fn uid(text: &str) -> PodUid {
        PodUid::new(text).unwrap()
    }

    fn cgroup(id: u64, pod: &str, level: u8) -> PodCgroup {
        PodCgroup { id: CgroupId(id), pod: uid(pod), level }
    }

    /// What the rows are meant to say, with what is known at the moment.
    fn rows(pods: &mut Pods, rows: &mut Delta<tables::Pods>) -> Vec<(u64, PodReason)> {
        pods.plan(rows);
        let pending: Vec<CgroupId> = rows.pending_keys().copied().collect();
        pending.iter().for_each(|id| rows.confirm(id));
        let mut all: Vec<_> =
            rows.entries().map(|(id, entry)| (id.0, entry.reason.only().unwrap())).collect();
        all.sort_unstable();
        all
    }

    fn table() -> Delta<tables::Pods> {
        Delta::restored([])
    }

    #[test]
    fn a_static_pods_uid_is_believed_unless_it_is_somebody_elses() {
        let (mut pods, mut table) = (Pods::new(true), table());
        pods.apply(Event::Replace(vec![cgroup(1, "victim", 3), cgroup(2, "static", 3)]));
        pods.store(&name("victim"), uid("victim"), Claim::Own, PodReason::OptedOut).unwrap();
        assert_eq!(
            pods.store(&name("thief"), uid("victim"), Claim::Static, PodReason::OptedIn),
            Err(UidTaken)
        );
        pods.store(&name("mirror"), uid("static"), Claim::Static, PodReason::Eligible).unwrap();
        assert_eq!(rows(&mut pods, &mut table), [(1, PodReason::OptedOut), (2, PodReason::Eligible)]);
        pods.remove(&name("thief"));
        assert_eq!(rows(&mut pods, &mut table), [(1, PodReason::OptedOut), (2, PodReason::Eligible)]);
        // In the other order.
        pods.store(&name("thief"), uid("later"), Claim::Static, PodReason::OptedIn).unwrap();
        pods.store(&name("later"), uid("later"), Claim::Own, PodReason::OptedOut).unwrap();
        pods.apply(Event::Apply(cgroup(3, "later", 3)));
        pods.remove(&name("thief"));
        assert_eq!(rows(&mut pods, &mut table)[2], (3, PodReason::OptedOut));
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_one() {
        let (mut pods, mut table) = (Pods::new(true), table());
        pods.store(&name("db-0"), uid("a"), Claim::Own, PodReason::Eligible).unwrap();
        pods.apply(Event::Replace(vec![cgroup(1, "a", 2)]));
        pods.store(&name("db-0"), uid("b"), Claim::Own, PodReason::OptedOut).unwrap();
        pods.apply(Event::Apply(cgroup(2, "b", 2)));
        assert_eq!(rows(&mut pods, &mut table), [(1, PodReason::Eligible), (2, PodReason::OptedOut)]);
        pods.apply(Event::Delete(CgroupId(1)));
        assert_eq!(rows(&mut pods, &mut table), [(2, PodReason::OptedOut)]);
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let (mut pods, mut table) = (Pods::new(true), table());
        for round in 0..3 {
            pods.apply(Event::Apply(cgroup(round, "a", 2)));
            pods.store(&name("a"), uid("a"), Claim::Own, PodReason::Eligible).unwrap();
            if round == 1 {
                pods.remove(&name("a"));
                assert_eq!(rows(&mut pods, &mut table), [(1, PodReason::Eligible)], "it still has processes");
                pods.apply(Event::Delete(CgroupId(round)));
            } else {
                pods.apply(Event::Delete(CgroupId(round)));
                pods.remove(&name("a"));
            }
            assert_eq!(rows(&mut pods, &mut table), []);
            assert!(pods.records.is_empty() && pods.names.is_empty() && pods.cgroups.is_empty(), "{pods:?}");
        }
    }

    #[test]
    fn levels_are_those_of_known_pods() {
        let (mut pods, mut table) = (Pods::new(true), table());
        assert_eq!(pods.levels(), None);
        pods.apply(Event::Replace(vec![cgroup(1, "a", 3), cgroup(2, "b", 2), cgroup(3, "c", 9)]));
        assert_eq!(rows(&mut pods, &mut table), []);
        assert_eq!(pods.levels(), Some(Levels::NONE));
        for pod in ["a", "b"] {
            pods.store(&name(pod), uid(pod), Claim::Own, PodReason::Eligible).unwrap();
        }
        // In the node's network: nobody asks.
        pods.store(&name("c"), uid("c"), Claim::Own, PodReason::Unknown).unwrap();
        assert_eq!(rows(&mut pods, &mut table).len(), 2);
        assert_eq!(pods.levels(), Some(Levels::new([2, 3])));
        pods.apply(Event::Delete(CgroupId(2)));
        assert_eq!(rows(&mut pods, &mut table).len(), 1);
        assert_eq!(pods.levels(), Some(Levels::new([3])));
    }
}
