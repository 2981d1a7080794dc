//! The commands that show something, as the command line has them.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{
    BackendsArgs, ExplainArgs, FlowsArgs, MonitorArgs, Paint, PreflightArgs, ServiceFilter, Show, ShowError,
    TopArgs, backends, explain, flows, monitor, preflight, render, services, status, top,
};
use crate::{cli::ShowArgs, datapath::Pins};

/// What people ask.
#[derive(Debug, Subcommand)]
pub enum ShowCommand {
    /// Show what is in the kernel: programs, devices, how full the tables are, what was dropped.
    Status(ShowArgs),
    /// Show the services in the kernel: frontends, backends, traffic.
    Services(ServicesArgs),
    /// Show the backends in the kernel: of which service, whether they serve, and how many flows they have.
    Backends(BackendsArgs),
    /// Show the flows through services, each once: from whom, to whom, how far they have come.
    ///
    /// Connections of the node's own processes are not among them: they get their backend when they connect, and their
    /// packets pass as they are.
    Flows(FlowsArgs),
    /// Explain what becomes of a connection: which service it is for, who may answer and why nobody else, whether its
    /// source is rewritten, and where all that is decided.
    ///
    /// The verdict is the kernel's own decision, taken on the kernel's own tables; nothing is sent, and nothing changes.
    Explain(Box<ExplainArgs>),
    /// Tell what happens, as it does: flows that begin, and what is dropped or refused and why.
    ///
    /// The datapath tells only while this runs: it costs a lookup for each new flow and each drop, and nothing for any
    /// other packet. One can run at a time on a node.
    Monitor(MonitorArgs),
    /// Show what each service port does per second: new flows, packets and bits both ways, drops.
    ///
    /// On a terminal it stays and takes keys; elsewhere it prints text, again and again unless --once is given.
    Top(TopArgs),
    /// Say whether Sluice can run on this machine, and who else balances here. Attaches and changes nothing; exits with 1
    /// if something is missing.
    Preflight(PreflightArgs),
}

/// Arguments of `services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// Only this Service, or this port of it
    #[arg(long, value_name = "NS/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

impl ShowCommand {
    /// Prints what was asked for. Returns the status to exit with.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or printed. A reader that stops early (`| head`) is no error.
    pub fn run(self) -> Result<ExitCode, ShowError> {
        let mut exit = ExitCode::SUCCESS;
        let done = match self {
            Self::Status(args) => print(&args, &status::status(&args.pins())?),
            Self::Services(args) => {
                print(&args.show, &services::services(&args.show.pins(), args.service.as_ref())?)
            }
            Self::Backends(args) => {
                print(&args.show, &backends::backends(&args.show.pins(), args.service.as_ref())?)
            }
            Self::Flows(args) => flows::run(&args),
            Self::Preflight(args) => {
                let found = preflight::preflight(&args)?;
                exit = found.exit_code();
                print(&args.show, &found)
            }
            Self::Top(args) => top::run(&args),
            Self::Monitor(args) => monitor::run(&args),
            Self::Explain(args) => print(&args.show, &explain::explain(&args)?),
        };
        match done {
            Err(ShowError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
        .map(|()| exit)
    }
}

impl ShowArgs {
    /// What is to be read.
    pub(super) fn pins(&self) -> Pins {
        Pins::new(&self.pins.bpffs)
    }
}

/// Prints something that is read as a whole.
fn print(args: &ShowArgs, value: &impl Show) -> Result<(), ShowError> {
    let text = render(value, args.output, Paint::detect())?;
    Ok(writeln!(io::stdout(), "{text}")?)
}
