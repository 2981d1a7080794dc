//! Who may use a load balancer's addresses, as rows of the source range table.

use std::net::IpAddr;

use proxy_common::{frontend::ServiceId, ranges::SourceRange, tables::SourceRanges};

use crate::{
    cidr::Cidr,
    delta::Pending,
    external::External,
    io::HashTableIo,
    tables::{Deletion, Failure, Tables, delete, write},
};

/// The networks that may use the restricted frontends; none if no frontend is restricted.
///
/// Hosts often carry the load balancer's addresses themselves, so where the node may, so may those (LBSR-07).
pub(crate) fn admitted(external: &External, node_ip: Option<IpAddr>) -> Vec<Cidr> {
    if !external.is_restricted() {
        return Vec::new();
    }
    let mut sources = external.source_ranges.clone();
    if node_ip.is_some_and(|ip| sources.iter().any(|range| range.contains(ip))) {
        sources.extend(external.load_balancer_ips.iter().copied().map(Cidr::host));
        sources.sort_unstable();
        sources.dedup();
    }
    sources
}

/// The source ranges of one service port in the tables.
///
/// Those that it should have are written before a frontend asks for them, those that it should not have go when none
/// does any more; so in between more may enter than should, but nobody is kept out who may.
#[derive(Debug, Default)]
pub(crate) struct Admissions {
    present: Vec<SourceRange>,
    /// What it had, and may still have in the kernel.
    dropped: Vec<SourceRange>,
}

impl Admissions {
    /// The kernel has this row.
    pub(crate) fn adopt(&mut self, range: SourceRange) {
        self.present.push(range);
    }

    /// Sets who should be admitted.
    pub(crate) fn aim(&mut self, service: ServiceId, sources: &[Cidr], tables: &mut Tables) {
        self.dropped.append(&mut self.present);
        self.present = sources.iter().map(|source| source.admitted_to(service)).collect();
        for &range in &self.dropped {
            tables.ranges.unwant(range);
        }
        for &range in &self.present {
            tables.ranges.want(range, range.prefix_length);
        }
        self.dropped.retain(|range| tables.ranges.pending(range) == Some(Pending::Delete));
    }

    /// Writes the rows that it should have.
    pub(crate) fn install<I: HashTableIo<SourceRanges>>(
        &self,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        self.present.iter().try_for_each(|&range| write(&mut tables.ranges, range, io))
    }

    /// Deletes those that it should not have.
    pub(crate) fn retire<I: HashTableIo<SourceRanges>>(
        &mut self,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        while let Some(&range) = self.dropped.last() {
            tables.freed |= delete(&mut tables.ranges, range, io)? == Deletion::Done;
            self.dropped.pop();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// LBSR-01, LBSR-07; VER-23.
    #[test]
    fn the_load_balancer_may_use_itself_where_the_node_may() {
        let vips = &["192.0.2.1", "192.0.2.2"][..];
        for (vips, ranges, node, expected) in [
            (&[][..], &["10.0.0.0/8"][..], Some("10.0.0.1"), &[][..]),
            (vips, &[], Some("10.0.0.1"), &[]),
            (vips, &["10.0.0.0/8"], None, &["10.0.0.0/8"]),
            (vips, &["10.0.0.0/8"], Some("172.16.0.1"), &["10.0.0.0/8"]),
            (vips, &["10.0.0.0/8"], Some("10.0.0.1"), &["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"]),
            (
                vips,
                &["10.0.0.1/32", "192.0.2.1/32"],
                Some("10.0.0.1"),
                &["10.0.0.1/32", "192.0.2.1/32", "192.0.2.2/32"],
            ),
        ] {
            let external = External {
                load_balancer_ips: parse(vips),
                source_ranges: parse(ranges),
                ..External::default()
            };
            let node = node.map(|ip| ip.parse().unwrap());
            assert_eq!(admitted(&external, node), parse(expected), "{ranges:?} on {node:?}");
        }
    }
}
