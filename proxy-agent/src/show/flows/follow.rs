//! Flows as they come, change and go: by looking at the table again and again.

use std::{collections::HashMap, io::Write, net::SocketAddr, thread, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{
    FlowFilterArgs, FlowRow, Reader,
    print::{HEADER, line},
};
use crate::{
    cli::OutputFormat,
    datapath::Pins,
    show::{
        Paint, ShowError, Tone,
        columns::{Columns, Line, cell},
        moment,
    },
};

/// What has become of a flow since the look before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Change {
    /// It was there at the first look.
    Present,
    /// It has begun.
    Begun,
    /// It is in another state, has another backend, or its backend is in another state.
    Changed,
    /// It is over.
    Ended,
}

impl Change {
    const fn mark(self) -> &'static str {
        match self {
            Self::Present => "",
            Self::Begun => "+",
            Self::Changed => "~",
            Self::Ended => "-",
        }
    }
}

/// Something that has become of a flow.
#[derive(Debug, Serialize)]
struct Event<'a> {
    /// When that was noticed.
    time: String,
    change: Change,
    #[serde(flatten)]
    flow: &'a FlowRow,
}

/// What tells a flow from all others.
type Identity = (&'static str, SocketAddr, SocketAddr);

/// Prints what there is, and what becomes of it, for ever.
pub(super) fn follow(
    pins: &Pins,
    filter: &FlowFilterArgs,
    interval: Duration,
    format: OutputFormat,
    out: &mut impl Write,
) -> Result<(), ShowError> {
    let mut printer = Printer::new(format);
    let mut known: Option<HashMap<Identity, FlowRow>> = None;
    let mut last = None;
    loop {
        let reader = Reader::open(pins)?;
        // A service that goes away takes its name with it; its flows may go on.
        let filter_now = match (filter.resolve(reader.names()), last.take()) {
            (Err(ShowError::NoService(_)), Some(before)) => before,
            (resolved, _) => resolved?,
        };
        let mut found = HashMap::new();
        for row in reader.rows(&filter_now) {
            let row = row?;
            found.insert((row.protocol, row.client, row.frontend), row);
        }
        let events = differences(known.as_ref(), &found);
        printer.print(&events, out)?;
        out.flush()?;
        drop(events);
        known = Some(found);
        last = Some(filter_now);
        thread::sleep(interval);
    }
}

/// What has become of flows between two looks, in the order in which they are printed.
fn differences<'a>(
    before: Option<&'a HashMap<Identity, FlowRow>>,
    now: &'a HashMap<Identity, FlowRow>,
) -> Vec<(Change, &'a FlowRow)> {
    let change = |(identity, row): (&Identity, &'a FlowRow)| {
        let change = match before.map(|before| before.get(identity)) {
            None => Change::Present,
            Some(None) => Change::Begun,
            Some(Some(old)) if is_other(old, row) => Change::Changed,
            Some(Some(_)) => return None,
        };
        Some((change, row))
    };
    let gone = before.into_iter().flatten().filter(|(identity, _)| !now.contains_key(*identity));
    let gone = gone.map(|(_, row)| (Change::Ended, row));
    let mut events: Vec<_> = gone.chain(now.iter().filter_map(change)).collect();
    events.sort_unstable_by_key(|(_, row)| *row);
    events
}

/// Whether more has changed than ages.
fn is_other(old: &FlowRow, new: &FlowRow) -> bool {
    let FlowRow { idle_seconds, expires_in_seconds, .. } = new;
    let ages =
        FlowRow { idle_seconds: *idle_seconds, expires_in_seconds: *expires_in_seconds, ..old.clone() };
    ages != *new
}

/// Prints events.
struct Printer {
    /// For people; `None` for programs.
    columns: Option<Columns<11>>,
    is_begun: bool,
}

impl Printer {
    fn new(format: OutputFormat) -> Self {
        let [a, b, c, d, e, f, g, h, i] = HEADER;
        let header = ["", "TIME", a, b, c, d, e, f, g, h, i];
        let columns = (format == OutputFormat::Table).then(|| Columns::new(header, Paint::detect()));
        Self { columns, is_begun: false }
    }

    fn print(&mut self, events: &[(Change, &FlowRow)], out: &mut impl Write) -> Result<(), ShowError> {
        let now = Timestamp::now();
        let Some(columns) = &mut self.columns else {
            for (change, flow) in events {
                let event = Event { time: now.to_string(), change: *change, flow };
                writeln!(out, "{}", serde_json::to_string(&event)?)?;
            }
            return Ok(());
        };
        let lines: Vec<_> = events.iter().map(|(change, row)| cells(*change, now, row)).collect();
        lines.iter().for_each(|line| columns.fit(line));
        if !self.is_begun {
            columns.print_header(out)?;
            self.is_begun = true;
        }
        Ok(lines.iter().try_for_each(|line| columns.print(line, out))?)
    }
}

fn cells(change: Change, now: Timestamp, row: &FlowRow) -> Line<11> {
    let [a, b, c, d, e, f, g, h, i] = line(row);
    let tone = match change {
        Change::Begun => Some(Tone::Good),
        Change::Ended => Some(Tone::Bad),
        Change::Changed => Some(Tone::Warning),
        Change::Present => None,
    };
    [(change.mark().to_owned(), tone), cell(moment(now)), a, b, c, d, e, f, g, h, i]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::BackendState;

    fn row(client: &str, state: &'static str, idle: u32) -> FlowRow {
        FlowRow {
            service: "default/web/UDP/IPv4".to_owned(),
            protocol: "UDP",
            client: client.parse().unwrap(),
            frontend: "10.96.0.10:53".parse().unwrap(),
            backend: "10.244.2.7:53".parse().unwrap(),
            backend_id: 3,
            backend_state: BackendState::Serving,
            seen_as: None,
            masqueraded: false,
            dsr: false,
            state,
            idle_seconds: idle,
            expires_in_seconds: Some(100 - idle),
        }
    }

    fn table(rows: &[FlowRow]) -> HashMap<Identity, FlowRow> {
        rows.iter().map(|row| ((row.protocol, row.client, row.frontend), row.clone())).collect()
    }

    #[test]
    fn beginnings_changes_and_ends_are_told_and_age_is_not() {
        let before = table(&[
            row("10.0.0.1:1", "replied", 0),
            row("10.0.0.2:1", "unreplied", 0),
            row("10.0.0.3:1", "replied", 0),
        ]);
        let now = table(&[
            row("10.0.0.1:1", "replied", 5),
            row("10.0.0.2:1", "replied", 0),
            row("10.0.0.4:1", "unreplied", 0),
        ]);
        let told = |before, now| {
            let events: Vec<(Change, &FlowRow)> = differences(before, now);
            events.into_iter().map(|(change, row)| (change, row.client.to_string())).collect::<Vec<_>>()
        };
        let expected = [
            (Change::Changed, "10.0.0.2:1".to_owned()),
            (Change::Ended, "10.0.0.3:1".to_owned()),
            (Change::Begun, "10.0.0.4:1".to_owned()),
        ];
        assert_eq!(told(Some(&before), &now), expected);
        assert_eq!(told(None, &now).iter().filter(|(change, _)| *change == Change::Present).count(), 3);
        assert!(told(Some(&now), &now).is_empty());
    }
}
