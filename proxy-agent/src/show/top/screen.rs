//! The screen: a title, the table, the sum, and what keys do.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Cell, Paragraph, Row, Table},
};

use super::{Column, app::App, rates::ServiceRates};

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let parts = [Constraint::Length(1), Constraint::Min(1), Constraint::Length(1), Constraint::Length(1)];
    let [title, body, total, hint] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Line::styled(app.title(), Modifier::BOLD), title);
    let rows = app.rows();
    // The name takes what the numbers leave.
    let widths = Column::ALL.map(|column| match column {
        Column::Service => Constraint::Min(20),
        column => Constraint::Length(u16::try_from(column.heading().len() + 1).unwrap_or(u16::MAX)),
    });
    let heading = Column::ALL.map(|column| {
        let (text, is_chosen) = app.heading(column);
        let style = if is_chosen {
            Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD)
        } else {
            Modifier::BOLD.into()
        };
        Cell::new(aligned(text, column)).style(style)
    });
    let table = Table::new(rows.iter().map(row), widths)
        .header(Row::new(heading))
        .row_highlight_style(Modifier::REVERSED)
        .column_spacing(2);
    frame.render_stateful_widget(table, body, &mut app.lines);
    // The same columns, below.
    let sum = Table::new([row(&app.total())], widths).column_spacing(2).style(Modifier::BOLD);
    frame.render_widget(sum, total);
    frame.render_widget(Paragraph::new(app.hint()).style(Color::DarkGray), hint);
}

fn row(rates: &ServiceRates) -> Row<'static> {
    let cell = |column| {
        let style = match column {
            Column::Drops if rates.drops > 0.0 => Style::new().fg(Color::Red),
            _ => Style::new(),
        };
        Cell::new(aligned(rates.cell(column), column)).style(style)
    };
    Row::new(Column::ALL.map(cell))
}

/// Numbers stand to the right.
fn aligned(text: String, column: Column) -> Text<'static> {
    let alignment = if column == Column::Service { Alignment::Left } else { Alignment::Right };
    Text::from(text).alignment(alignment)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent},
    };

    use super::*;
    use crate::show::top::rates::tests::example;

    /// What is on a screen of that size.
    fn screen(app: &mut App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_busiest_services_are_seen_with_their_sum() {
        let mut app = App::new(Column::Flows, Duration::from_secs(2));
        assert!(screen(&mut app, 100, 6).starts_with("sluice top   counting for 2 s"));
        app.show(example(&[("default/web:http/TCP/IPv4", 12.0), ("kube-system/dns:dns/UDP/IPv6", 3000.0)]));
        let expected = "\
sluice top   2 of 2 service ports, over 2 s
SERVICE                         NEW FLOWS/S▼   PACKETS/S   REPLIES/S   BIT/S   REPLY BIT/S   DROPS/S
kube-system/dns:dns/UDP/IPv6            3.0k       30.0k       27.0k   24.0M          2.4G         0
default/web:http/TCP/IPv4               12.0         120         108   96.0k          9.6M         0

all                                     3.0k       30.1k       27.1k   24.1M          2.4G         0
q quit   ←→ sort by   r reverse   / filter   space pause   ↑↓ scroll";
        assert_eq!(screen(&mut app, 100, 7), expected);
    }

    #[test]
    fn many_services_are_scrolled_through_and_a_small_screen_does_no_harm() {
        let names: Vec<_> = (10..60).map(|number| format!("default/service-{number}")).collect();
        let services: Vec<_> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
        let mut app = App::new(Column::Service, Duration::from_secs(2));
        app.show(example(&services));
        assert!(screen(&mut app, 100, 8).contains("service-10"));
        app.on_key(KeyEvent::from(KeyCode::End));
        let last = screen(&mut app, 100, 8);
        assert!(last.contains("service-59") && !last.contains("service-10"), "{last}");
        screen(&mut app, 10, 2);
        screen(&mut app, 1, 1);
    }
}
