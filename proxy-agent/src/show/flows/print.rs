//! Flows for people and programs, as they are read: a full table is printed in the memory of a page.

use std::io::{self, Write};

use serde::{Serializer as _, ser::SerializeSeq as _};

use super::FlowRow;
use crate::show::{
    Paint, ShowError, Tone,
    columns::{Columns, Line, cell},
    names::short,
    time::duration,
};

/// Lines that are put in order, and that columns are fitted to: enough for whoever reads them all.
const PAGE: usize = 1000;

/// The columns of flows.
pub(super) const HEADER: [&str; 9] =
    ["SERVICE", "PROTO", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE", "EXPIRES", "NOTES"];

/// Prints a table. What does not fit on the first page follows in the kernel's order.
pub(in crate::show) fn table(
    rows: impl Iterator<Item = Result<FlowRow, ShowError>>,
    paint: Paint,
    out: &mut impl Write,
) -> Result<(), ShowError> {
    let mut rows = rows.peekable();
    let mut page = Vec::new();
    while page.len() < PAGE
        && let Some(row) = rows.next()
    {
        page.push(row?);
    }
    if page.is_empty() {
        return Ok(writeln!(out, "no such flows in the kernel")?);
    }
    page.sort_unstable();
    let mut columns = Columns::new(HEADER, paint);
    let lines: Vec<_> = page.iter().map(line).collect();
    lines.iter().for_each(|line| columns.fit(line));
    columns.print_header(out)?;
    for line in &lines {
        columns.print(line, out)?;
    }
    for row in rows {
        columns.print(&line(&row?), out)?;
    }
    Ok(())
}

/// A flow in a line.
pub(super) fn line(row: &FlowRow) -> Line<9> {
    let (service, _) = short(&row.service);
    let expires = row.expires_in_seconds.map_or_else(|| "over".to_owned(), duration);
    let tone = row.backend_state.tone();
    let mut notes = Vec::new();
    if tone.is_some() {
        notes.push(format!("backend {}", row.backend_state.as_str()));
    }
    match row.seen_as {
        None => notes.push("source to be rewritten".to_owned()),
        Some(seen_as) if seen_as != row.client => notes.push(format!("seen as {seen_as}")),
        Some(_) if row.dsr => notes.push("answered by its node (DSR)".to_owned()),
        Some(_) => {}
    }
    [
        cell(service),
        cell(row.protocol),
        cell(row.client.to_string()),
        cell(row.frontend.to_string()),
        (row.backend.to_string(), tone),
        cell(row.state),
        cell(duration(row.idle_seconds)),
        (expires, row.expires_in_seconds.is_none().then_some(Tone::Warning)),
        cell(notes.join(", ")),
    ]
}

/// Prints an object with all of them.
pub(super) fn json(
    rows: impl Iterator<Item = Result<FlowRow, ShowError>>,
    out: &mut impl Write,
) -> Result<(), ShowError> {
    out.write_all(b"{\"flows\":")?;
    let mut serializer = serde_json::Serializer::new(&mut *out);
    let mut list = serializer.serialize_seq(None)?;
    for row in rows {
        list.serialize_element(&row?).map_err(as_output)?;
    }
    list.end()?;
    Ok(out.write_all(b"}\n")?)
}

/// What is wrong with where it is written to, rather than with what is written.
fn as_output(error: serde_json::Error) -> ShowError {
    match error.io_error_kind() {
        Some(kind) => ShowError::Output(io::Error::from(kind)),
        None => ShowError::Json(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::BackendState;

    fn row(client: &str) -> FlowRow {
        FlowRow {
            service: "default/web:http/TCP/IPv4".to_owned(),
            protocol: "TCP",
            client: client.parse().unwrap(),
            frontend: "10.96.0.10:80".parse().unwrap(),
            backend: "10.244.2.7:8080".parse().unwrap(),
            backend_id: 3,
            backend_state: BackendState::Serving,
            seen_as: Some(client.parse().unwrap()),
            masqueraded: false,
            dsr: false,
            state: "established",
            idle_seconds: 3,
            expires_in_seconds: Some(86_397),
        }
    }

    fn rows() -> [FlowRow; 3] {
        [
            FlowRow {
                masqueraded: true,
                seen_as: Some("192.0.2.1:5000".parse().unwrap()),
                backend_state: BackendState::Gone,
                ..row("192.0.2.77:999")
            },
            FlowRow {
                masqueraded: true,
                seen_as: None,
                expires_in_seconds: None,
                state: "syn-sent",
                idle_seconds: 121,
                ..row("192.0.2.9:1")
            },
            row("10.244.1.5:40000"),
        ]
    }

    fn printed(print: impl FnOnce(&mut Vec<u8>) -> Result<(), ShowError>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_see_them_in_order() {
        let expected = "\
SERVICE           PROTO  CLIENT            FRONTEND       BACKEND          STATE        IDLE  EXPIRES  NOTES
default/web:http  TCP    10.244.1.5:40000  10.96.0.10:80  10.244.2.7:8080  established  3s    23h59m
default/web:http  TCP    192.0.2.9:1       10.96.0.10:80  10.244.2.7:8080  syn-sent     2m1s  over     source to be rewritten
default/web:http  TCP    192.0.2.77:999    10.96.0.10:80  10.244.2.7:8080  established  3s    23h59m   backend gone, seen as 192.0.2.1:5000
";
        assert_eq!(printed(|out| table(rows().map(Ok).into_iter(), Paint::Plain, out)), expected);
        assert_eq!(
            printed(|out| table(std::iter::empty(), Paint::Plain, out)),
            "no such flows in the kernel\n"
        );
    }

    #[test]
    fn what_fits_on_no_page_is_printed_all_the_same() {
        let many = PAGE + 2;
        let text =
            printed(|out| table(std::iter::repeat_n(row("10.0.0.1:1"), many).map(Ok), Paint::Plain, out));
        assert_eq!(text.lines().count(), many + 1);
    }

    #[test]
    fn programs_read_an_object() {
        let text = printed(|out| json(rows().map(Ok).into_iter(), out));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let flows = value["flows"].as_array().unwrap();
        assert_eq!(flows.len(), 3);
        assert_eq!(flows[0]["seen_as"], "192.0.2.1:5000");
        assert_eq!(flows[0]["backend_state"], "gone");
        assert!(flows[1]["expires_in_seconds"].is_null());
        assert_eq!(printed(|out| json(std::iter::empty(), out)), "{\"flows\":[]}\n");
    }
}
