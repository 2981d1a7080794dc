//! The `sluice` binary.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use proxy_agent::{
    cgroup::{self, CgroupError},
    cli::{Cli, Command},
    config::{self, Configuration, Host, LogFormat, Note, RunArgs, SocketLb, Task, node_name, with_dashes},
    datapath::{self, Pins},
    events::{Events, Reporter},
    health::{Clock, Progress},
    http, kube_proxy,
    metrics::Metrics,
    run, watch,
};
use proxy_common::{config::SocketFlags, pod::PodReasons};
use proxy_model::Change;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse_from(with_dashes(std::env::args_os())).command {
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

fn start(args: RunArgs) -> anyhow::Result<()> {
    let host = Host::detect();
    let configuration = Configuration::load(&args, host)?;
    begin_log(&configuration)?;
    for note in &configuration.notes {
        match note {
            Note::Info(text) => tracing::info!("{text}"),
            Note::Warning(text) => tracing::warn!("{text}"),
        }
    }
    match &configuration.task {
        Task::WriteConfig(path) => write_config(&configuration, path),
        Task::Cleanup => clean_up(&configuration.sluice.bpffs()),
        Task::CleanupKubeProxy => clean_up_kube_proxy(&configuration),
        Task::InitOnly => Ok(run::prepare(&options(&configuration)?)?),
        Task::Run => {
            adjust_oom_score(configuration.kube_proxy.oom_score_adj.unwrap_or_default());
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(serve(args, host, configuration))
        }
    }
}

fn begin_log(configuration: &Configuration) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&configuration.log)?;
    let colour = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match configuration.log_format() {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

fn write_config(configuration: &Configuration, path: &Path) -> anyhow::Result<()> {
    fs::write(path, configuration.to_yaml()?).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(file = %path.display(), "wrote the configuration");
    Ok(())
}

/// Removes what Sluice has left on this node.
fn clean_up(bpffs: &Path) -> anyhow::Result<()> {
    let removed = datapath::cleanup(bpffs)?;
    let pins = bpffs.display();
    if removed.layouts == 0 {
        tracing::info!(%pins, "nothing of Sluice is here");
        return Ok(());
    }
    tracing::info!(%pins, links = removed.links, "programs are detached, and tables removed");
    if let Some(reason) = removed.unseen {
        tracing::warn!(reason, "could not see whether the kernel has freed all links");
    }
    Ok(())
}

/// Removes what kube-proxy has left on this node.
fn clean_up_kube_proxy(configuration: &Configuration) -> anyhow::Result<()> {
    if !configuration.sluice.allow_kube_proxy.unwrap_or_default()
        && let Some(active) = kube_proxy::active(configuration.http()?.metrics)
    {
        bail!("{active}, and would make its rules anew. Stop it first, or say --allow-kube-proxy as well");
    }
    let kube_proxy::Outcome { removed, unremoved } = kube_proxy::cleanup();
    for removed in &removed {
        tracing::info!("removed {removed}");
    }
    for error in &unremoved {
        tracing::error!("{}", proxy_agent::report(error));
    }
    match unremoved.len() {
        0 if removed.is_empty() => tracing::info!("nothing to remove: nothing of kube-proxy is here"),
        0 => tracing::info!("looked again: nothing of kube-proxy is left here"),
        count => bail!("not all of kube-proxy could be removed: {count} errors, see above"),
    }
    Ok(())
}

/// Refuses to serve beside a kube-proxy: what one of them does not serve any more, the other still would. Its pod may be
/// ending, as it is when a node goes over to Sluice.
async fn expect_no_kube_proxy(configuration: &Configuration) -> anyhow::Result<()> {
    if configuration.sluice.allow_kube_proxy.unwrap_or_default() {
        return Ok(());
    }
    kube_proxy::absence(configuration.http()?.metrics, END_OF_KUBE_PROXY).await.map_err(|active| {
        anyhow::anyhow!(
            "{active}, and has not ended in {} s. Only one may serve a node: keep kube-proxy off it (docs/migrate.md), \
             or let both run with --allow-kube-proxy",
            END_OF_KUBE_PROXY.as_secs()
        )
    })
}

/// As with kube-proxy, the agent is no worse off if it may not.
fn adjust_oom_score(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::info!(score, %error, "cannot adjust this process's OOM score");
    }
}

/// What the agent of this node runs with.
fn options(configuration: &Configuration) -> anyhow::Result<run::Options> {
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let node = node_name(&configuration.kube_proxy.hostname_override, &hostname.to_string_lossy())
        .context("the node has no name: set --hostname-override")?;
    let mut options = configuration.options(node)?;
    let mode = configuration.sluice.socket_lb.unwrap_or_default();
    options.sockets.cgroup = served_cgroup(options.sockets.cgroup.take(), mode)?;
    if options.sockets.cgroup.is_none() {
        options.sockets.pods = PodReasons::NONE;
        options.model.follow_pods = false;
    }
    Ok(options)
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

/// Why the agent ends.
enum End {
    Asked,
    ConfigurationChanged,
}

async fn serve(args: RunArgs, host: Host, configuration: Configuration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        absent = expect_no_kube_proxy(&configuration) => absent?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let mut options = options(&configuration)?;
    let place = pods_place(&mut options);
    let node = options.model.node_name.clone();
    let metrics = Metrics::default();
    let (mut changes, events): (BoxStream<'static, Change>, Events) = match &configuration.sluice.manifests {
        Some(dir) => (watch::manifests(dir)?.boxed(), Events::logged()),
        None => {
            let client = watch::client(&configuration.api(), &metrics.api).await?;
            let reporter = Reporter { node: node.clone(), host: hostname.to_string_lossy().into_owned() };
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
    let result = run_with_servers((args, host, configuration), sources, options, outlets, changes).await;
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
    (args, host, configuration): (RunArgs, Host, Configuration),
    sources: http::Sources,
    options: run::Options,
    outlets: run::Outlets,
    changes: BoxStream<'static, Change>,
) -> anyhow::Result<()> {
    let _servers = http::start(configuration.http()?, sources)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut end = End::Asked;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = config::changed(&args, host, &configuration) => end = End::ConfigurationChanged,
        }
    };
    run::run(options, outlets, changes, stop).await?;
    match end {
        End::Asked => Ok(()),
        End::ConfigurationChanged => {
            let files = configuration.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
            bail!("{} changed: ending, to be started again with what is there now", files.join(" or "))
        }
    }
}

/// How long kube-proxy may take to end: as long as Kubernetes leaves to pods that do not say otherwise.
const END_OF_KUBE_PROXY: Duration = Duration::from_secs(30);

/// How long an agent that fails may take to tell of it.
const LAST_WORDS: Duration = Duration::from_secs(5);
