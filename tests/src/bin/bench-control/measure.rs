//! A cluster of some size, from the first list to the last change.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::HashTable;
use proxy_common::{
    frontend::{Frontend, FrontendKey},
    tables::Frontends,
};
use serde::Serialize;
use sluice_tests::{
    apiserver::{ApiServer, Request},
    bench::process::Memory,
    netns::Namespace,
};
use tokio::runtime;

use crate::{
    agent::Agent,
    cluster::{self, Size},
};

/// How long a change may take to get into the kernel before nobody believes that it ever will.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the tables are looked at.
const GLANCE: Duration = Duration::from_micros(50);

/// What one size costs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) size: Size,
    pub(crate) cold: Start,
    /// With everything in the tables already.
    pub(crate) again: Start,
    pub(crate) one_change: Latencies,
    /// Seconds until changes of all Services at once were in the kernel, from the first one at the server.
    pub(crate) all_changes: f64,
    /// Bytes that the agent holds in memory after all of this.
    pub(crate) resident: u64,
    /// Bytes that it held at most.
    pub(crate) resident_peak: u64,
    /// Bytes of the kernel behind its tables.
    pub(crate) tables: u64,
    /// Share of one CPU while nothing happens.
    pub(crate) idle_cpu: f64,
}

/// How long an agent takes until everything is in the kernel.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Start {
    /// Seconds from the start of the process.
    pub(crate) from_start: f64,
    /// Seconds since it has asked for the last page of its lists.
    pub(crate) from_lists: f64,
    /// Seconds of CPU time that it took, in the agent and for it in the kernel.
    pub(crate) cpu: f64,
}

/// Seconds from when a change is at the server until it is in the kernel.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Latencies {
    /// Of at least one change.
    fn of(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let max = *seconds.last()?;
        let at = |hundredths: usize| seconds.get(seconds.len() * hundredths / 100).copied();
        Some(Self { median: at(50)?, p99: at(99)?, max })
    }
}

/// Measures a cluster of that size.
pub(crate) fn measure(size: Size, changes: u32, idle: u32) -> Result<Row> {
    let namespace = Namespace::new(&format!("control-{size}"))?;
    namespace.run(|| {
        // The server's tasks have a thread of their own; it is in the namespace because this one is.
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(measure_in(&namespace, size, changes, idle))
    })
}

async fn measure_in(namespace: &Namespace, size: Size, changes: u32, idle: u32) -> Result<Row> {
    let server = ApiServer::start().await?;
    cluster::fill(&server, size);
    let (agent, cold) = start(namespace, &server, size).await?;
    let mut view = View::open(&agent, size)?;
    (0..size.services).try_for_each(|number| view.wait_for(number))?;
    let one_change = Latencies::of(
        (0..changes)
            .map(|change| {
                // Each Service once before any of them again, in an order that means nothing to anybody.
                let number = u32::try_from(u64::from(change) * 7_919 % u64::from(size.services))?;
                let begin = Instant::now();
                view.change(&server, number);
                view.wait_for(number)?;
                Ok(begin.elapsed().as_secs_f64())
            })
            .collect::<Result<_>>()?,
    )
    .context("no changes")?;

    let begin = Instant::now();
    (0..size.services).for_each(|number| view.change(&server, number));
    (0..size.services).try_for_each(|number| view.wait_for(number))?;
    let all_changes = begin.elapsed().as_secs_f64();

    let before = agent.cpu_time()?;
    thread::sleep(Duration::from_secs(idle.into()));
    let idle_cpu = (agent.cpu_time()? - before).as_secs_f64() / f64::from(idle);
    let Memory { resident, peak: resident_peak } = agent.memory()?;
    let tables = agent.table_memory()?;

    agent.stop()?;
    let (agent, again) = start(namespace, &server, size).await?;
    agent.stop()?;
    Ok(Row { size, cold, again, one_change, all_changes, resident, resident_peak, tables, idle_cpu })
}

/// Starts an agent, and waits until all of the cluster is in the kernel.
async fn start(namespace: &Namespace, server: &ApiServer, size: Size) -> Result<(Agent, Start)> {
    // The watches of an agent that has ended may be open for a moment.
    server.drop_connections().await;
    let asked_before = server.requests().len();
    let begin = Instant::now();
    let mut agent = Agent::start(namespace, &format!("control-{size}"), &server.kubeconfig())?;
    let slices = size.services * size.endpoints.div_ceil(cluster::SLICE);
    server
        .requested("the last pages are asked for", |requests| {
            let news = requests.get(asked_before..).unwrap_or_default();
            pages_left(news, "services", size.services) == Some(0)
                && pages_left(news, "endpointslices", slices) == Some(0)
        })
        .await;
    let listed = Instant::now();
    agent.wait_until_synced()?;
    let start = Start {
        from_start: begin.elapsed().as_secs_f64(),
        from_lists: listed.elapsed().as_secs_f64(),
        cpu: agent.cpu_time()?.as_secs_f64(),
    };
    Ok((agent, start))
}

/// How many pages of a list are still to be asked for; `None` if none has been.
fn pages_left(requests: &[Request], resource: &str, objects: u32) -> Option<u32> {
    let lists = requests.iter().filter(|request| request.is_list(resource));
    let limit: u32 = lists.clone().next()?.parameter("limit")?.parse().ok()?;
    let asked = u32::try_from(lists.count()).ok()?;
    Some(objects.div_ceil(limit).saturating_sub(asked))
}

/// The frontends as they are in the kernel, and as they were before the latest change.
struct View {
    table: HashTable<Frontends>,
    size: Size,
    /// Of each Service, whether its first endpoint is ready.
    ready: Vec<bool>,
}

impl View {
    fn open(agent: &Agent, size: Size) -> Result<Self> {
        let ready = vec![true; usize::try_from(size.services)?];
        Ok(Self { table: HashTable::open(&agent.pins())?, size, ready })
    }

    /// Has an endpoint of a Service come or go.
    fn change(&mut self, server: &ApiServer, number: u32) {
        if let Some(ready) = usize::try_from(number).ok().and_then(|number| self.ready.get_mut(number)) {
            *ready = !*ready;
            server.apply(&cluster::slice(self.size, number, 0, *ready));
        }
    }

    /// Waits until the kernel knows how many endpoints a Service has.
    fn wait_for(&self, number: u32) -> Result<()> {
        let index = usize::try_from(number)?;
        let ready = *self.ready.get(index).context("a Service")?;
        let wanted = self.size.endpoints - u32::from(!ready);
        let key: FrontendKey = cluster::frontend(number);
        let begin = Instant::now();
        loop {
            let frontend: Frontend = self.table.get(&key)?.with_context(|| format!("no frontend {key:?}"))?;
            if frontend.slots.count == wanted {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{frontend:?} has not got {wanted} backends in {PATIENCE:?}");
            thread::sleep(GLANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_the_limit_that_was_asked_for() {
        let request = |page: &str| Request {
            path: "/api/v1/services".to_owned(),
            query: vec![("limit".to_owned(), "500".to_owned()), ("continue".to_owned(), page.to_owned())],
            user_agent: String::new(),
        };
        assert_eq!(pages_left(&[], "services", 1_001), None);
        assert_eq!(pages_left(&[request("")], "services", 1_001), Some(2));
        assert_eq!(pages_left(&[request(""), request("a"), request("b")], "services", 1_001), Some(0));
        assert_eq!(pages_left(&[request("")], "endpointslices", 1), None);
    }

    #[test]
    fn latencies_are_sorted_first() {
        let latencies = Latencies::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((latencies.median, latencies.p99, latencies.max), (51.0, 100.0, 100.0));
        let latencies = Latencies::of(vec![2.0]).unwrap();
        assert_eq!((latencies.median, latencies.max), (2.0, 2.0));
        assert!(Latencies::of(Vec::new()).is_none());
    }
}
