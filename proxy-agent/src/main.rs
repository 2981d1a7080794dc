//! The `sluice` binary.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use futures::{StreamExt as _, stream::BoxStream};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use proxy_agent::{
    cli::{Cli, Command, LogFormat, RunArgs, ShowArgs, node_name},
    datapath::Pins,
    options::options,
    run, show, watch,
};
use proxy_model::Change;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => start(*args),
        Command::Status(args) => print(&args, show::status),
        Command::Services(args) => print(&args, show::services),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _stderr_is_gone =
                writeln!(std::io::stderr(), "sluice: {}", proxy_agent::report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Prints what `show` reads from the kernel. A reader that stops early (`| head`) is no error.
fn print<T: show::Show>(
    args: &ShowArgs,
    read: fn(&Pins) -> Result<T, show::ShowError>,
) -> anyhow::Result<()> {
    let text = show::render(&read(&Pins::new(&args.pins.bpffs))?, args.output)?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn start(args: RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let colour = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    if let Some(dir) = &args.cgroup {
        let kind = statfs(dir).with_context(|| format!("--cgroup {}", dir.display()))?;
        anyhow::ensure!(
            kind.filesystem_type() == CGROUP2_SUPER_MAGIC,
            "--cgroup {}: not in a cgroup2 file system",
            dir.display()
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let node = node_name(args.hostname_override.as_deref(), &hostname.to_string_lossy())
        .context("the node has no name: set --hostname-override")?;
    let (manifests, kubeconfig) = (args.manifests.clone(), args.kubeconfig.clone());
    let options = options(args, node)?;
    let node = &options.model.node_name;
    let changes: BoxStream<'static, Change> = match &manifests {
        Some(dir) => watch::manifests(dir)?.boxed(),
        None => watch::kubernetes(watch::client(kubeconfig.as_deref()).await?, node).boxed(),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run::run(options, changes, stop).await?;
    Ok(())
}
