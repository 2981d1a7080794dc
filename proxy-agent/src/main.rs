//! The `sluice` binary.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use futures::{StreamExt as _, stream::BoxStream};
use proxy_agent::{
    cgroup::{self, CgroupError},
    cli::{Cli, Command, LogFormat, RunArgs, SocketLb, node_name},
    options::options,
    run, watch,
};
use proxy_model::Change;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => start(*args).map(|()| ExitCode::SUCCESS),
        Command::Show(command) => command.run().map_err(Into::into),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            let _stderr_is_gone =
                writeln!(std::io::stderr(), "sluice: {}", proxy_agent::report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(mut args: RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let colour = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    args.cgroup = served_cgroup(args.cgroup, args.sockets.socket_lb)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

/// The cgroup whose processes are served at their sockets; `None` if none are.
fn served_cgroup(given: Option<PathBuf>, mode: SocketLb) -> Result<Option<PathBuf>, CgroupError> {
    if let Some(dir) = &given {
        cgroup::check(dir)?;
    }
    if mode == SocketLb::Off {
        return Ok(None);
    }
    let dir = match given.map_or_else(cgroup::find, Ok) {
        Ok(dir) => dir,
        Err(error) if mode == SocketLb::Auto => {
            tracing::warn!("{error}; without it, the node's own processes do not reach services");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(Some(dir))
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
