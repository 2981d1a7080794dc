//! `sluice top`: what each service port does per second.

mod app;
mod rates;
mod screen;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum, builder::RangedU64ValueParser};
use ratatui::crossterm::event::{self, Event};

pub use rates::{Rates, ServiceRates};

use self::{
    app::{App, Next},
    rates::Sampler,
};
use super::{Paint, ServiceFilter, ShowError, render};
use crate::cli::{OutputFormat, ShowArgs};

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only this Service, or this port of it
    #[arg(long, value_name = "NS/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// What the services are in order of, the busiest first
    #[arg(long, value_enum, default_value_t)]
    pub sort: Column,
    /// Seconds that rates are taken over
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub interval: u64,
    /// Print the rates of one interval and end
    #[arg(long)]
    pub once: bool,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// What services can be in order of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// Their names.
    Service,
    /// New flows.
    #[default]
    Flows,
    /// Packets from clients.
    Packets,
    /// Packets to clients.
    Replies,
    /// Bits from clients.
    Bits,
    /// Bits to clients.
    ReplyBits,
    /// Dropped packets.
    Drops,
}

impl Column {
    /// All of them, as they stand from left to right.
    pub(super) const ALL: [Self; 7] =
        [Self::Service, Self::Flows, Self::Packets, Self::Replies, Self::Bits, Self::ReplyBits, Self::Drops];

    /// What stands above it.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Flows => "NEW FLOWS/S",
            Self::Packets => "PACKETS/S",
            Self::Replies => "REPLIES/S",
            Self::Bits => "BIT/S",
            Self::ReplyBits => "REPLY BIT/S",
            Self::Drops => "DROPS/S",
        }
    }
}

/// Prints them: on the whole terminal if there is one, else as text.
pub(super) fn run(args: &TopArgs) -> Result<(), ShowError> {
    let pins = args.show.pins();
    let interval = Duration::from_secs(args.interval);
    let mut sampler = Sampler::start(&pins, args.service.clone())?;
    let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if is_terminal && !args.once && args.show.output == OutputFormat::Table {
        return interact(&mut sampler, App::new(args.sort, interval));
    }
    loop {
        thread::sleep(interval);
        let mut rates = sampler.take()?;
        rates.sort(args.sort, false);
        let text = match args.show.output {
            OutputFormat::Table => render(&rates, OutputFormat::Table, Paint::detect())? + "\n",
            // One object a line, as whoever follows reads them.
            OutputFormat::Json => serde_json::to_string(&rates)?,
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", if args.once { text.trim_end() } else { &text })?;
        out.flush()?;
        if args.once {
            return Ok(());
        }
    }
}

/// Takes the terminal, and gives it back however this ends: ratatui does so when somebody panics, and here it is done
/// otherwise. Ctrl-C is a key like any other meanwhile.
fn interact(sampler: &mut Sampler, mut app: App) -> Result<(), ShowError> {
    let mut terminal = ratatui::try_init()?;
    let outcome = (|| {
        let mut due = Instant::now() + app.interval();
        loop {
            terminal.draw(|frame| screen::draw(frame, &mut app))?;
            if event::poll(due.saturating_duration_since(Instant::now()))? {
                if let Event::Key(key) = event::read()?
                    && app.on_key(key) == Next::End
                {
                    return Ok(());
                }
            } else {
                app.show(sampler.take()?);
                due = Instant::now() + app.interval();
            }
        }
    })();
    ratatui::try_restore()?;
    outcome
}
