//! The services for people.

use super::{BackendRow, FrontendKind, FrontendRow, ServiceRow, Services};
use crate::show::{Paint, Show, grid, lines, right};

impl Show for Services {
    fn table(&self, paint: Paint) -> String {
        if self.services.is_empty() {
            return "no services in the kernel".to_owned();
        }
        let mut table =
            grid(["SERVICE", "FRONTEND", "BACKENDS", "FLOWS", "PACKETS", "REPLIES", "DROPS"], paint);
        right(&mut table, [3, 4, 5, 6]);
        for service in &self.services {
            let mut first = service.first_cells();
            for alike in service.alike() {
                let [name, counters @ ..] = std::mem::take(&mut first);
                let [frontends, backends] = cells(&alike, &service.source_ranges);
                let [flows, packets, replies, drops] = counters;
                table.add_row([name, frontends, backends, flows, packets, replies, drops]);
            }
        }
        lines(&table)
    }
}

impl ServiceRow {
    /// Name and counters, which stand in the service's first row.
    fn first_cells(&self) -> [String; 5] {
        let mut name = vec![self.name.clone()];
        name.extend(
            self.drops_by_reason.iter().map(|(reason, count)| format!("  dropped: {reason} {count}")),
        );
        let numbers = [self.connections, self.packets, self.reply_packets, self.drops];
        let [flows, packets, replies, drops] = numbers.map(|number| number.to_string());
        [name.join("\n"), flows, packets, replies, drops]
    }

    /// The frontends, those that do the same together.
    fn alike(&self) -> Vec<Vec<&FrontendRow>> {
        let mut groups = Vec::<Vec<&FrontendRow>>::new();
        for frontend in &self.frontends {
            let does_the_same = |group: &&mut Vec<&FrontendRow>| {
                group.first().is_some_and(|first| first.does_the_same_as(frontend))
            };
            match groups.iter_mut().find(does_the_same) {
                Some(group) => group.push(frontend),
                None => groups.push(vec![frontend]),
            }
        }
        groups
    }
}

impl FrontendRow {
    fn does_the_same_as(&self, other: &Self) -> bool {
        *self == Self { address: self.address, kind: self.kind, ..other.clone() }
    }

    /// The protocol is part of the service's name, and so is the family.
    fn name(&self) -> String {
        match self.kind {
            FrontendKind::NodePort => format!("*:{}", self.address.port()),
            FrontendKind::ClusterIp | FrontendKind::External => self.address.to_string(),
        }
    }

    /// What is special about it. What happens without backends is shown where there are none.
    fn notes(&self, source_ranges: &[String]) -> Vec<String> {
        let mut notes = Vec::new();
        if self.affinity_seconds > 0 {
            notes.push(format!("affinity {} s", self.affinity_seconds));
        }
        for flag in &self.flags {
            match *flag {
                "maglev" => notes.push("chosen by hash (Maglev)".to_owned()),
                "dsr" => notes.push("answered by backends' nodes (DSR)".to_owned()),
                "local-set" => notes.push("this node's backends only".to_owned()),
                "masquerade" => notes.push("sources rewritten".to_owned()),
                "restricted" if source_ranges.is_empty() => notes.push("admits nobody".to_owned()),
                "restricted" => notes.push(format!("admits {}", source_ranges.join(", "))),
                _ => {}
            }
        }
        notes
    }
}

/// What frontends that do the same are called, and where they lead.
fn cells(alike: &[&FrontendRow], source_ranges: &[String]) -> [String; 2] {
    let Some(first) = alike.first() else {
        return Default::default();
    };
    let mut frontends: Vec<_> = alike.iter().map(|frontend| frontend.name()).collect();
    frontends.extend(first.notes(source_ranges).into_iter().map(|note| format!("  {note}")));
    let inside = backends(&first.backends, first.without_backends);
    let backends = match &first.outside {
        None => inside,
        Some(outside) => {
            let outside = backends(&outside.backends, outside.without_backends);
            if outside == inside { inside } else { apart(inside, outside) }
        }
    };
    [frontends.join("\n"), backends.join("\n")]
}

fn apart(inside: Vec<String>, outside: Vec<String>) -> Vec<String> {
    let indent = |lines: Vec<String>| lines.into_iter().map(|line| format!("  {line}"));
    let mut lines = vec!["inside the cluster:".to_owned()];
    lines.extend(indent(inside));
    lines.push("outside:".to_owned());
    lines.extend(indent(outside));
    lines
}

fn backends(backends: &[BackendRow], without: &str) -> Vec<String> {
    if backends.is_empty() {
        return vec![format!("none: {without}")];
    }
    backends.iter().map(|backend| format!("{}{}", backend.address, mark(&backend.state))).collect()
}

fn mark(state: &str) -> &'static str {
    match state {
        "live" => "",
        "live local" => " (local)",
        _ => " (gone)",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::show::Outside;

    fn backend(id: u32, address: &str, state: &str) -> BackendRow {
        BackendRow { id, address: address.parse().unwrap(), state: state.to_owned() }
    }

    fn frontend(kind: FrontendKind, address: &str, backends: &[BackendRow]) -> FrontendRow {
        FrontendRow {
            address: address.parse().unwrap(),
            protocol: "TCP".to_owned(),
            kind,
            flags: Vec::new(),
            affinity_seconds: 0,
            without_backends: "refused",
            backends: backends.to_vec(),
            outside: None,
        }
    }

    #[test]
    fn people_see_who_is_led_where() {
        let here = backend(1, "10.244.1.5:8080", "live local");
        let all = [here.clone(), backend(2, "10.244.2.7:8080", "live")];
        let by_origin = |row: FrontendRow, flags: &[&'static str], backends: &[BackendRow]| FrontendRow {
            flags: flags.to_vec(),
            outside: Some(Outside { without_backends: "dropped", backends: backends.to_vec() }),
            ..row
        };
        let web = ServiceRow {
            name: "default/web:http/TCP/IPv4".to_owned(),
            frontends: vec![
                frontend(FrontendKind::ClusterIp, "10.96.0.10:80", &all),
                by_origin(
                    frontend(FrontendKind::External, "198.51.100.1:80", &all),
                    &["by-origin", "restricted"],
                    &[],
                ),
                by_origin(frontend(FrontendKind::External, "192.0.2.10:80", &all), &["by-origin"], &[here]),
                by_origin(frontend(FrontendKind::NodePort, "0.0.0.0:30080", &all), &["by-origin"], &all[..1]),
            ],
            source_ranges: vec!["10.0.0.0/8".to_owned(), "192.168.0.0/16".to_owned()],
            connections: 3,
            packets: 40,
            reply_packets: 38,
            drops: 2,
            drops_by_reason: BTreeMap::from([("not_in_source_ranges", 2)]),
            ..ServiceRow::default()
        };
        let idle = FrontendRow {
            affinity_seconds: 10_800,
            flags: vec!["local-set", "drop-when-empty"],
            without_backends: "dropped",
            ..frontend(FrontendKind::ClusterIp, "[fd00::1]:53", &[])
        };
        let dns = ServiceRow {
            name: "kube-system/dns:dns/UDP/IPv6".to_owned(),
            frontends: vec![idle, frontend(FrontendKind::NodePort, "[::]:30053", &all[1..])],
            ..ServiceRow::default()
        };
        let expected = "\
SERVICE                            FRONTEND                             BACKENDS                   FLOWS  PACKETS  REPLIES  DROPS
default/web:http/TCP/IPv4          10.96.0.10:80                        10.244.1.5:8080 (local)        3       40       38      2
  dropped: not_in_source_ranges 2                                       10.244.2.7:8080
                                   198.51.100.1:80                      inside the cluster:
                                     admits 10.0.0.0/8, 192.168.0.0/16    10.244.1.5:8080 (local)
                                                                          10.244.2.7:8080
                                                                        outside:
                                                                          none: dropped
                                   192.0.2.10:80                        inside the cluster:
                                   *:30080                                10.244.1.5:8080 (local)
                                                                          10.244.2.7:8080
                                                                        outside:
                                                                          10.244.1.5:8080 (local)
kube-system/dns:dns/UDP/IPv6       [fd00::1]:53                         none: dropped                  0        0        0      0
                                     affinity 10800 s
                                     this node's backends only
                                   *:30053                              10.244.2.7:8080";
        assert_eq!(Services { services: vec![web, dns] }.table(Paint::Plain), expected);
    }

    #[test]
    fn nothing_is_said_to_be_there() {
        assert_eq!(Services { services: Vec::new() }.table(Paint::Plain), "no services in the kernel");
    }
}
