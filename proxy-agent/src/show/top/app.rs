//! What is on the screen, and what keys do to it.

use std::time::Duration;

use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    widgets::TableState,
};

use super::{
    Column,
    rates::{Rates, ServiceRates},
};

/// Lines that a page key goes.
const PAGE: u16 = 10;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on.
    GoOn,
    /// Leave.
    End,
}

/// Everything that the screen shows.
pub(super) struct App {
    rates: Rates,
    sort: Column,
    reversed: bool,
    filter: String,
    /// Whether keys are letters of the filter.
    is_typing: bool,
    is_paused: bool,
    interval: Duration,
    /// Which line is chosen, and how far the table is scrolled.
    pub(super) lines: TableState,
}

impl App {
    pub(super) fn new(sort: Column, interval: Duration) -> Self {
        Self {
            rates: Rates::default(),
            sort,
            reversed: false,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            interval,
            lines: TableState::default(),
        }
    }

    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    /// Shows newer rates, unless somebody looks at the old ones.
    pub(super) fn show(&mut self, rates: Rates) {
        if !self.is_paused {
            self.rates = rates;
        }
    }

    /// The services that the filter leaves, in order.
    pub(super) fn rows(&self) -> Vec<ServiceRates> {
        let mut rates = self.rates.clone();
        rates.services.retain(|row| row.service.contains(&self.filter));
        rates.sort(self.sort, self.reversed);
        rates.services
    }

    /// Those of all that the filter leaves together.
    pub(super) fn total(&self) -> ServiceRates {
        let services = self.rows();
        Rates { services, ..Rates::default() }.total()
    }

    /// How a column is called, and whether it is the one that is sorted by.
    pub(super) fn heading(&self, column: Column) -> (String, bool) {
        if column != self.sort {
            return (column.heading().to_owned(), false);
        }
        let arrow = if self.reversed { '▲' } else { '▼' };
        (format!("{}{arrow}", column.heading()), true)
    }

    /// What can be done, or what is being typed.
    pub(super) fn hint(&self) -> String {
        if self.is_typing {
            return format!("filter: {}_   (Enter to keep it, Esc to drop it)", self.filter);
        }
        let mut hint = "q quit   ←→ sort by   r reverse   / filter   space pause   ↑↓ scroll".to_owned();
        if !self.filter.is_empty() {
            hint += &format!("   [filter: {}]", self.filter);
        }
        if self.is_paused {
            hint += "   [paused]";
        }
        hint
    }

    /// What is said above the table.
    pub(super) fn title(&self) -> String {
        let shown = self.rows().len();
        let seconds = self.interval.as_secs();
        if self.rates.services.is_empty() && self.rates.interval_seconds == 0.0 {
            return format!("sluice top   counting for {seconds} s");
        }
        format!("sluice top   {shown} of {} service ports, over {seconds} s", self.rates.services.len())
    }

    /// Does what a key says.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::GoOn;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Next::End } else { Next::GoOn };
        }
        if self.is_typing {
            self.type_key(key.code);
            return Next::GoOn;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Right | KeyCode::Char('s') => self.sort = self.neighbour(1),
            KeyCode::Left => self.sort = self.neighbour(Column::ALL.len() - 1),
            KeyCode::Down => self.lines.select_next(),
            KeyCode::Up => self.lines.select_previous(),
            KeyCode::PageDown => self.lines.scroll_down_by(PAGE),
            KeyCode::PageUp => self.lines.scroll_up_by(PAGE),
            KeyCode::Home => self.lines.select_first(),
            KeyCode::End => self.lines.select_last(),
            _ => {}
        }
        Next::GoOn
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
        self.lines = TableState::default();
    }

    /// The column so many to the right, round and round.
    fn neighbour(&self, steps: usize) -> Column {
        let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or_default();
        Column::ALL.iter().cycle().nth(at + steps).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::top::rates::tests::example;

    fn app() -> App {
        let mut app = App::new(Column::Flows, Duration::from_secs(2));
        app.show(example(&[("default/web", 5.0), ("default/api", 50.0), ("kube-system/dns", 500.0)]));
        app
    }

    fn press(app: &mut App, codes: &[KeyCode]) -> Next {
        codes.iter().map(|code| app.on_key(KeyEvent::from(*code))).last().unwrap_or(Next::GoOn)
    }

    fn names(app: &App) -> Vec<String> {
        app.rows().into_iter().map(|row| row.service).collect()
    }

    #[test]
    fn keys_sort_filter_and_pause() {
        let mut app = app();
        assert_eq!(names(&app), ["kube-system/dns", "default/api", "default/web"]);
        press(&mut app, &[KeyCode::Char('r')]);
        assert_eq!(names(&app), ["default/web", "default/api", "kube-system/dns"]);
        press(&mut app, &[KeyCode::Char('r'), KeyCode::Left]);
        assert_eq!(names(&app), ["default/api", "default/web", "kube-system/dns"]);
        assert_eq!(app.heading(Column::Service), ("SERVICE▼".to_owned(), true));
        // Once round.
        press(&mut app, &[KeyCode::Left, KeyCode::Right]);
        assert!(app.heading(Column::Service).1);

        press(&mut app, &[KeyCode::Char('/'), KeyCode::Char('w'), KeyCode::Char('x'), KeyCode::Backspace]);
        assert!(app.hint().starts_with("filter: w_"), "{}", app.hint());
        assert_eq!(press(&mut app, &[KeyCode::Char('q'), KeyCode::Backspace, KeyCode::Enter]), Next::GoOn);
        assert_eq!(names(&app), ["default/web"]);
        assert!((app.total().connections - 5.0).abs() < f64::EPSILON);
        press(&mut app, &[KeyCode::Char('/'), KeyCode::Esc, KeyCode::Char(' ')]);
        app.show(example(&[("other", 1.0)]));
        assert_eq!(names(&app).len(), 3, "paused");
        press(&mut app, &[KeyCode::Char(' ')]);
        app.show(example(&[("other", 1.0)]));
        assert_eq!(names(&app), ["other"]);
    }

    #[test]
    fn there_are_three_ways_out() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for key in [KeyEvent::from(KeyCode::Char('q')), KeyEvent::from(KeyCode::Esc), control_c] {
            assert_eq!(app().on_key(key), Next::End, "{key:?}");
        }
        let mut typing = app();
        press(&mut typing, &[KeyCode::Char('/')]);
        assert_eq!(typing.on_key(control_c), Next::End);
        assert_eq!(app().on_key(KeyEvent::from(KeyCode::Char('c'))), Next::GoOn);
    }
}
