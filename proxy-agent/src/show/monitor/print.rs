//! Events for people and programs.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;

use super::{EventRow, Happening, Lost};
use crate::{
    cli::OutputFormat,
    show::{
        Paint, ShowError, Tone,
        columns::{Columns, Line, cell},
        names::short,
    },
};

/// Prints events as they come.
pub(super) struct Printer {
    /// For people; `None` for programs.
    columns: Option<Columns<7>>,
}

impl Printer {
    pub(super) fn new(format: OutputFormat, paint: Paint) -> Self {
        let header = ["TIME", "EVENT", "SERVICE", "PROTO", "CLIENT", "FRONTEND", "WHAT"];
        let columns = (format == OutputFormat::Table).then(|| {
            let mut columns = Columns::new(header, paint);
            // Room for what is usual, so that lines stay in line.
            let usual = ["00:00:00.000", "refused", "default/service:http", "TCP", "192.168.100.100:40000"];
            let [a, b, c, d, e] = usual.map(cell);
            columns.fit(&[a, b, c, d, e, cell("10.96.100.100:8080"), cell("")]);
            columns
        });
        Self { columns }
    }

    /// Prints what comes before all events.
    pub(super) fn begin(&self, out: &mut impl Write) -> Result<(), ShowError> {
        if let Some(columns) = &self.columns {
            columns.print_header(out)?;
        }
        Ok(())
    }

    /// Prints one.
    pub(super) fn print(&mut self, row: &EventRow, out: &mut impl Write) -> Result<(), ShowError> {
        match &mut self.columns {
            Some(columns) => columns.print(&line(row), out)?,
            None => writeln!(out, "{}", serde_json::to_string(row)?)?,
        }
        Ok(())
    }

    /// Says that there were more.
    pub(super) fn tell_lost(&self, count: u64, out: &mut impl Write) -> Result<(), ShowError> {
        if self.columns.is_some() {
            writeln!(out, "({count} more events came faster than they could be taken, and are lost)")?;
        } else {
            let lost = Lost { time: Timestamp::now().to_string(), event: "lost", count };
            writeln!(out, "{}", serde_json::to_string(&lost)?)?;
        }
        Ok(())
    }
}

/// An event in a line.
fn line(row: &EventRow) -> Line<7> {
    // The time of the day, as in the agent's log.
    let time = row.time.split('T').nth(1).unwrap_or(&row.time);
    let time: String = time.chars().take(12).collect();
    let (event, tone) = match row.event {
        Happening::Begun => ("begun", Tone::Good),
        Happening::Dropped => ("dropped", Tone::Bad),
        Happening::Refused => ("refused", Tone::Warning),
        Happening::Forbidden => ("forbidden", Tone::Bad),
        Happening::Reset => ("reset", Tone::Warning),
    };
    let client = match (row.client, row.process) {
        (Some(client), _) => client.to_string(),
        (None, Some(process)) => {
            let name = row.process_name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            format!("process {process}{name}")
        }
        (None, None) => String::new(),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        cell(time),
        (event.to_owned(), Some(tone)),
        cell(row.service.as_deref().map_or("-", |name| short(name).0)),
        cell(row.protocol.clone()),
        cell(client),
        cell(or_dash(row.frontend.map(|end| end.to_string()))),
        cell(what(row)),
    ]
}

fn what(row: &EventRow) -> String {
    let mut what = Vec::new();
    if let Some(reason) = row.reason {
        what.push(reason.to_owned());
    }
    if let Some(backend) = row.backend {
        what.push(format!("to {backend}"));
    }
    if row.masqueraded {
        what.push("source rewritten".to_owned());
    }
    if let Some(device) = &row.device_name {
        what.push(format!("at {device}"));
    }
    what.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::Path;

    #[test]
    fn people_see_what_happens_in_lines() {
        let flow = EventRow {
            time: "2026-11-21T14:00:14.608478Z".to_owned(),
            event: Happening::Begun,
            path: Path::Tc,
            service: Some("default/web:http/TCP/IPv4".to_owned()),
            protocol: "TCP".to_owned(),
            client: Some("10.244.1.5:40000".parse().unwrap()),
            process: None,
            process_name: None,
            frontend: Some("10.96.0.10:80".parse().unwrap()),
            backend: Some("10.244.2.7:8080".parse().unwrap()),
            masqueraded: true,
            reason: None,
            device: Some(7),
            device_name: Some("veth5".to_owned()),
        };
        let refusal = EventRow {
            event: Happening::Refused,
            path: Path::Socket,
            service: None,
            client: None,
            process: Some(1234),
            process_name: Some("curl".to_owned()),
            backend: None,
            masqueraded: false,
            reason: Some("no_backend"),
            device: None,
            device_name: None,
            ..flow.clone()
        };
        let mut printer = Printer::new(OutputFormat::Table, Paint::Plain);
        let mut out = Vec::new();
        printer.begin(&mut out).unwrap();
        printer.print(&flow, &mut out).unwrap();
        printer.print(&refusal, &mut out).unwrap();
        printer.tell_lost(3, &mut out).unwrap();
        let expected = "\
TIME          EVENT    SERVICE               PROTO  CLIENT                 FRONTEND            WHAT
14:00:14.608  begun    default/web:http      TCP    10.244.1.5:40000       10.96.0.10:80       to 10.244.2.7:8080, source rewritten, at veth5
14:00:14.608  refused  -                     TCP    process 1234 (curl)    10.96.0.10:80       no_backend
(3 more events came faster than they could be taken, and are lost)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
