//! The answer for people.

use super::{Candidate, Explanation, Outcome, Path};
use crate::show::{FrontendKind, Paint, Show, Tone, flows, grid, lines, time::duration};

/// Flows that are printed; `sluice flows` has the others.
const FLOWS: usize = 10;

impl Show for Explanation {
    fn table(&self, paint: Paint) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String, tone: Option<Tone>| {
            let value = tone.map_or_else(|| value.clone(), |tone| paint.text(&value, tone));
            text += &format!("{name:<9} {value}\n");
        };
        line("client", self.client_text(), None);
        line("to", self.destination_text(), None);
        line("decided", self.path_text(), None);
        if let Some(sources) = &self.source_ranges {
            let (says, tone) =
                if sources.admitted { ("admit", None) } else { ("do not admit", Some(Tone::Bad)) };
            let ranges =
                if sources.ranges.is_empty() { "nobody".to_owned() } else { sources.ranges.join(", ") };
            line("sources", format!("the service's source ranges {says} {}: {ranges}", sources.asked), tone);
        }
        if let Some(origin) = &self.origin {
            let side = if origin.inside { "inside" } else { "outside" };
            line("origin", format!("{side} the cluster: {}", origin.why), None);
        }
        if let Some(set) = &self.set {
            let how = if set.by_hash { ", chosen by hash (Maglev)" } else { "" };
            let dsr = if set.dsr { ", clients outside are answered by backends' nodes (DSR)" } else { "" };
            line("set", format!("{}, {} backends: {}{how}{dsr}", set.name, set.backends, set.why), None);
        }
        if let Some(text) = self.affinity_text() {
            line("affinity", text, None);
        }
        for problem in &self.problems {
            line("problem", problem.clone(), Some(Tone::Bad));
        }
        let tone = match self.verdict.outcome {
            Outcome::Served => Tone::Good,
            Outcome::Passed => Tone::Warning,
            Outcome::Refused | Outcome::Dropped | Outcome::Reset => Tone::Bad,
        };
        line("verdict", self.verdict.text.clone(), Some(tone));
        if !self.backends.is_empty() {
            text += &format!("\n{}\n", self.backend_table(paint));
        }
        if !self.flows.is_empty() {
            text += &format!("\n{}\n", self.flow_table(paint));
        }
        text.trim_end().to_owned()
    }
}

impl Explanation {
    fn client_text(&self) -> String {
        let client = &self.client;
        let Some(ip) = client.address else {
            return "a process of this node".to_owned();
        };
        let name = client
            .port
            .map_or_else(|| ip.to_string(), |port| std::net::SocketAddr::new(ip, port).to_string());
        let index = client.device.unwrap_or_default();
        let device = client.device_name.clone().unwrap_or_else(|| format!("device {index}"));
        let found = client.device_found.unwrap_or_default();
        let class = match client.local_clients {
            Some(true) => "local clients",
            Some(false) => "an uplink",
            None => "unknown to the datapath",
        };
        format!("{name}, through {device} ({class}; {found})")
    }

    fn destination_text(&self) -> String {
        let to = format!("{}/{}", self.destination, self.protocol);
        let Some(found) = &self.frontend else {
            return if self.other_ports.is_empty() {
                format!("{to}, no frontend; nothing is served at that address")
            } else {
                format!("{to}, no frontend; served at that address are {}", self.other_ports.join(", "))
            };
        };
        let kind = match found.kind {
            FrontendKind::ClusterIp => "the ClusterIP",
            FrontendKind::External => "an external address",
            FrontendKind::NodePort => "a NodePort",
        };
        format!("{to}, {kind} of {}", found.service)
    }

    fn path_text(&self) -> String {
        let hook = |hook: &super::AttachedHook| match hook.id {
            Some(id) => format!("{} ({id})", hook.program),
            None => hook.program.to_owned(),
        };
        let hooks: Vec<_> = self.hooks.iter().map(hook).collect();
        let pod = match self.client.pod_reason {
            Some("unknown") => "; the client's pod is not known (--pod)".to_owned(),
            Some(reason) => format!("; the client's pod is {reason}"),
            None => String::new(),
        };
        match self.path {
            Path::Socket => format!("when its socket connects or sends, by {}{pod}", hooks.join(", ")),
            Path::Tc => format!("as its packets enter the node, by {}{pod}", hooks.join(", ")),
            Path::None => "nowhere".to_owned(),
        }
    }

    fn affinity_text(&self) -> Option<String> {
        let mapping = self.affinity.as_ref()?;
        let lasts = duration(mapping.seconds);
        let age = mapping.age_seconds.map(duration).unwrap_or_default();
        Some(match mapping.backend {
            Some(backend) if mapping.counts => {
                format!("{lasts}; used to {backend}, last connection {age} ago")
            }
            Some(backend) => format!("{lasts}; was used to {backend}, {age} ago, which no longer counts"),
            None if self.path == Path::Socket && !self.client.is_host => {
                format!("{lasts}; by the pod's network namespace, which is not known here")
            }
            None => format!("{lasts}; the client is new"),
        })
    }

    fn backend_table(&self, paint: Paint) -> String {
        let has_objects = self.backends.iter().any(|candidate| candidate.objects.is_some());
        let mut table = grid(["BACKEND", "WHERE", "STATE", "IN SET", "SOURCE", "WHY", "OBJECTS SAY"], paint);
        for candidate in &self.backends {
            let state = candidate.state.map_or("-", |state| state.as_str());
            let tone = candidate.state.and_then(|state| state.tone());
            table.add_row([
                candidate.address.to_string().into(),
                if candidate.local { "here" } else { "elsewhere" }.into(),
                tone.map_or_else(|| state.into(), |tone| Paint::cell(state, tone)),
                if candidate.in_set { "yes" } else { "no" }.into(),
                candidate.source_text().into(),
                candidate.why_text().into(),
                candidate.objects_text().into(),
            ]);
        }
        if !has_objects && let Some(column) = table.column_mut(6) {
            column.set_constraint(comfy_table::ColumnConstraint::Hidden);
        }
        lines(&table)
    }

    fn flow_table(&self, paint: Paint) -> String {
        let rows = self.flows.iter().take(FLOWS).cloned().map(Ok);
        let mut out = Vec::new();
        // Into memory, nothing can fail.
        drop(flows::table(rows, paint, &mut out));
        let mut text = String::from_utf8_lossy(&out).trim_end().to_owned();
        if self.flows.len() > FLOWS {
            text += &format!("\n(and {} more: `sluice flows`)", self.flows.len() - FLOWS);
        }
        text
    }
}

impl Candidate {
    fn source_text(&self) -> String {
        match (self.masqueraded, self.seen_as) {
            (None, _) => "-".to_owned(),
            (Some(false), _) => "kept".to_owned(),
            (Some(true), Some(ip)) => ip.to_string(),
            (Some(true), None) => "the node's".to_owned(),
        }
    }

    fn why_text(&self) -> String {
        let source = self.masqueraded_why.map(|why| format!("source: {why}"));
        self.why_not.clone().or(source).unwrap_or_default()
    }

    fn objects_text(&self) -> String {
        match &self.objects {
            None => "no such endpoint".to_owned(),
            Some(objects) if objects.in_set => "in the set".to_owned(),
            Some(objects) => objects.why_not.clone().unwrap_or_else(|| "not in the set".to_owned()),
        }
    }
}
