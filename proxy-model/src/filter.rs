//! Which bits of the address filter are set, and who needs them.

use std::{collections::HashMap, time::Duration};

use proxy_common::{
    addr::Addr,
    filter::{AddressRoles, FilterLine, FilterPosition, LINE},
    tables::AddressFilter,
};

use crate::{
    delta::{Delta, Pending},
    ids::GRACE,
};

/// Counts the table rows behind each bit of the address filter.
///
/// A bit is set before the first row that needs it is written. It is not cleared when the last row goes, because
/// flows outlive rows; only [`Filter::retain`] clears it, once the caller has looked at the flows.
#[derive(Debug)]
pub(crate) struct Filter {
    lines: Delta<AddressFilter>,
    /// Rows by position and role. A count of zero stays until the bit is cleared.
    users: HashMap<(FilterPosition, u8), Users>,
}

/// Who needs a bit.
#[derive(Clone, Copy, Debug)]
struct Users {
    rows: u32,
    /// When the last row went.
    unused_since: Duration,
}

impl Filter {
    /// The filter as the kernel has it. Its bits count as set, though nobody has claimed them yet.
    pub(crate) fn restored(lines: Vec<(u32, FilterLine)>) -> Self {
        Self { lines: Delta::restored(lines), users: HashMap::new() }
    }

    /// A row with this address is going to be written.
    pub(crate) fn hold(&mut self, address: Addr, role: AddressRoles) {
        let position = FilterPosition::of(address);
        let users = self.users.entry((position, role.0));
        users.or_insert(Users { rows: 0, unused_since: Duration::ZERO }).rows += 1;
        let mut line = self.wanted(position.line);
        if let Some(roles) = line.roles.get_mut(position.at)
            && !roles.contains(role)
        {
            *roles = roles.with(role);
            self.lines.want(position.line, line);
        }
    }

    /// A row with this address has been deleted.
    pub(crate) fn release(&mut self, address: Addr, role: AddressRoles, now: Duration) {
        if let Some(users) = self.users.get_mut(&(FilterPosition::of(address), role.0)) {
            users.rows = users.rows.saturating_sub(1);
            users.unused_since = now;
        }
    }

    /// Clears the bits that neither a row nor a flow needs. Flows are known as of `sweep_started`: a bit that a row
    /// needed until less than [`GRACE`] before may belong to a flow that was not there to be seen yet.
    pub(crate) fn retain(
        &mut self,
        sweep_started: Duration,
        in_use: impl Fn(FilterPosition) -> AddressRoles,
    ) {
        let mut touched: Vec<u32> = self.lines.entries().map(|(&line, _)| line).collect();
        touched.sort_unstable();
        for number in touched {
            let before = self.wanted(number);
            let mut after = before;
            for (at, roles) in after.roles.iter_mut().enumerate().take(LINE) {
                if *roles == AddressRoles::NONE {
                    continue;
                }
                let position = FilterPosition { line: number, at };
                let needed = [AddressRoles::FRONTEND, AddressRoles::BACKEND, AddressRoles::NODE]
                    .into_iter()
                    .filter(|&role| self.is_recent(position, role, sweep_started))
                    .fold(in_use(position), AddressRoles::with);
                *roles = AddressRoles(roles.0 & needed.0);
            }
            if after != before {
                self.lines.want(number, after);
            }
        }
        self.users.retain(|_, users| users.rows > 0 || users.unused_since + GRACE > sweep_started);
    }

    /// The line of an address, if the kernel does not have it yet.
    pub(crate) fn pending(&self, address: Addr) -> Option<(u32, FilterLine)> {
        self.pending_line(FilterPosition::of(address).line)
    }

    /// All lines that the kernel does not have yet.
    pub(crate) fn all_pending(&self) -> Vec<(u32, FilterLine)> {
        let mut numbers: Vec<u32> = self.lines.pending_keys().copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| self.pending_line(number)).collect()
    }

    /// Whether there are lines that the kernel does not have yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.lines.pending_keys().next().is_some()
    }

    /// The lines.
    pub(crate) const fn lines(&self) -> &Delta<AddressFilter> {
        &self.lines
    }

    /// The kernel has this line now.
    pub(crate) fn confirm(&mut self, line: u32) {
        self.lines.confirm(&line);
    }

    fn pending_line(&self, number: u32) -> Option<(u32, FilterLine)> {
        match self.lines.pending(&number)? {
            Pending::Put(line) => Some((number, line)),
            Pending::Delete => None,
        }
    }

    fn wanted(&self, line: u32) -> FilterLine {
        self.lines.wanted(&line).copied().unwrap_or_default()
    }

    fn is_recent(&self, position: FilterPosition, role: AddressRoles, sweep_started: Duration) -> bool {
        self.users
            .get(&(position, role.0))
            .is_some_and(|users| users.rows > 0 || users.unused_since + GRACE > sweep_started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Addr = Addr::from_v4_wire([10, 0, 0, 1]);
    const LATER: Duration = Duration::from_secs(60);

    fn roles(filter: &Filter, address: Addr) -> AddressRoles {
        let position = FilterPosition::of(address);
        filter.wanted(position.line).roles[position.at]
    }

    fn written(filter: &mut Filter) {
        for (line, _) in filter.all_pending() {
            filter.confirm(line);
        }
    }

    #[test]
    fn a_bit_stays_until_neither_row_nor_flow_needs_it() {
        let mut filter = Filter::restored(Vec::new());
        filter.hold(A, AddressRoles::BACKEND);
        filter.hold(A, AddressRoles::BACKEND);
        assert!(filter.pending(A).is_some());
        written(&mut filter);
        filter.release(A, AddressRoles::BACKEND, Duration::ZERO);
        filter.retain(LATER, |_| AddressRoles::NONE);
        assert_eq!(roles(&filter, A), AddressRoles::BACKEND);
        filter.release(A, AddressRoles::BACKEND, LATER);
        filter.retain(2 * LATER, |_| AddressRoles::BACKEND);
        assert_eq!(roles(&filter, A), AddressRoles::BACKEND);
        assert!(filter.all_pending().is_empty());
        filter.retain(2 * LATER, |_| AddressRoles::NONE);
        assert_eq!(roles(&filter, A), AddressRoles::NONE);
        assert_eq!(filter.all_pending().len(), 1);
    }

    #[test]
    fn a_sweep_that_began_too_early_clears_nothing() {
        let mut filter = Filter::restored(Vec::new());
        filter.hold(A, AddressRoles::FRONTEND);
        written(&mut filter);
        filter.release(A, AddressRoles::FRONTEND, LATER);
        filter.retain(LATER + GRACE / 2, |_| AddressRoles::NONE);
        assert_eq!(roles(&filter, A), AddressRoles::FRONTEND);
        filter.retain(LATER + GRACE, |_| AddressRoles::NONE);
        assert_eq!(roles(&filter, A), AddressRoles::NONE);
    }

    #[test]
    fn restored_bits_are_set_until_a_sweep_finds_nobody() {
        let mut line = FilterLine::default();
        let position = FilterPosition::of(A);
        line.roles[position.at] = AddressRoles::BACKEND;
        let mut filter = Filter::restored(vec![(position.line, line)]);
        filter.hold(A, AddressRoles::BACKEND);
        assert!(filter.all_pending().is_empty());
        filter.release(A, AddressRoles::BACKEND, Duration::ZERO);
        filter.retain(LATER, |_| AddressRoles::NONE);
        assert_eq!(roles(&filter, A), AddressRoles::NONE);
    }
}
