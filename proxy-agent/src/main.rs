//! The `sluice` binary.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use proxy_agent::{
    cgroup::{self, CgroupError},
    cli::{Cli, Command, LogFormat, RunArgs, ShowArgs, SocketLb, node_name},
    datapath::Pins,
    events::{Events, Reporter},
    health::{Clock, Progress},
    http::{self, HttpOptions},
    metrics::Metrics,
    options::{http_options, options},
    run, show, watch,
};
use proxy_common::{config::SocketFlags, pod::PodReasons};
use proxy_model::Change;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
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

/// Where the cgroup that is served is in the hierarchy, if anybody asks. Leaves pods to packets if that cannot be told.
fn pods_place(options: &mut run::Options) -> Option<PathBuf> {
    let dir = options.sockets.cgroup.as_ref().filter(|_| options.model.follow_pods)?;
    if let Some(place) = cgroup::place(dir) {
        return Some(place);
    }
    tracing::warn!(
        cgroup = %dir.display(),
        "pods are left to packets: the root of cgroup2 is not mounted here, so it cannot be told which pod a process \
         belongs to; in a container, mount the host's cgroup2"
    );
    options.model.follow_pods = false;
    options.sockets.pods = PodReasons::NONE;
    options.sockets.flags = options.sockets.flags.with(SocketFlags::LEVELS_UNKNOWN);
    None
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let hostname = hostname.to_string_lossy();
    let node = node_name(args.hostname_override.as_deref(), &hostname)
        .context("the node has no name: set --hostname-override")?;
    let (manifests, kubeconfig) = (args.manifests.clone(), args.kubeconfig.clone());
    let http_options = http_options(&args)?;
    let mut options = options(args, node.clone())?;
    let place = pods_place(&mut options);
    let metrics = Metrics::default();
    let (mut changes, events): (BoxStream<'static, Change>, Events) = match &manifests {
        Some(dir) => (watch::manifests(dir)?.boxed(), Events::logged()),
        None => {
            let client = watch::client(kubeconfig.as_deref(), &metrics.api).await?;
            let reporter = Reporter { node: node.clone(), host: hostname.into_owned() };
            let events = Events::posted(client.clone(), reporter, metrics.events.clone());
            let changes = watch::kubernetes(client.clone(), &node, &metrics.api);
            if options.model.follow_pods {
                (stream::select(changes, watch::pods(client, &node, &metrics.api)).boxed(), events)
            } else {
                (changes.boxed(), events)
            }
        }
    };
    if let (Some(dir), Some(place)) = (options.sockets.cgroup.clone(), place) {
        changes = cgroup::with_pod_cgroups(changes, dir, place).boxed();
    }
    let (outlets, sources) = connect(node, &metrics, &Pins::new(&options.bpffs), events.clone());
    let result = run_with_servers(http_options, sources, options, outlets, changes).await;
    if result.is_err() {
        // Why may be among the Events that have not been posted yet (EVT-03).
        events.flush(LAST_WORDS).await;
    }
    result
}

/// The two ends of everything that the loop tells and the servers answer.
fn connect(node: String, metrics: &Metrics, pins: &Pins, events: Events) -> (run::Outlets, http::Sources) {
    let clock = Clock::start();
    let (progress, progress_seen) = tokio::sync::watch::channel(Progress::default());
    let (checks, checks_seen) = mpsc::unbounded_channel();
    let sources = http::Sources {
        node: node.clone(),
        clock,
        progress: progress_seen,
        checks: checks_seen,
        exposition: metrics.exposition(pins),
        health_metrics: metrics.health.clone(),
        events: events.clone(),
    };
    let metrics = metrics.rounds.clone();
    (run::Outlets { node, clock, progress, checks, metrics, events }, sources)
}

async fn run_with_servers(
    http_options: HttpOptions,
    sources: http::Sources,
    options: run::Options,
    outlets: run::Outlets,
    changes: BoxStream<'static, Change>,
) -> anyhow::Result<()> {
    let _servers = http::start(http_options, sources)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run::run(options, outlets, changes, stop).await?;
    Ok(())
}

/// How long an agent that fails may take to tell of it.
const LAST_WORDS: Duration = Duration::from_secs(5);
