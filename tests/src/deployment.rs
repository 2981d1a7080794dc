//! An agent on every node of a cluster.

use std::{
    panic,
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Result, ensure};
use proxy_common::drop::DropReason;

use crate::{
    agent::Agent,
    service::Service,
    topology::{Cluster, Node},
};

/// The agents of a cluster, which are all told to serve the same.
#[derive(Debug)]
pub struct Deployment {
    /// One per node, in the order of the nodes.
    pub agents: Vec<Agent>,
}

impl Deployment {
    /// Starts an agent with these arguments on every node and waits until all are up.
    ///
    /// # Errors
    ///
    /// If one does not come up.
    pub fn start(cluster: &Cluster, arguments: &[String]) -> Result<Self> {
        Self::start_each(cluster, |_| arguments.to_vec())
    }

    /// As [`Deployment::start`], with arguments that depend on the node.
    ///
    /// # Errors
    ///
    /// If one does not come up.
    pub fn start_each(cluster: &Cluster, arguments: impl Fn(&Node) -> Vec<String> + Sync) -> Result<Self> {
        let arguments = &arguments;
        let agents = thread::scope(|scope| {
            let start = |node| scope.spawn(move || Agent::start(node, &arguments(node)));
            let starting: Vec<_> = cluster.nodes.iter().map(start).collect();
            let started = |thread: ScopedJoinHandle<'_, Result<Agent>>| {
                thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
            };
            starting.into_iter().map(started).collect::<Result<_>>()
        })?;
        Ok(Self { agents })
    }

    /// Nothing has happened that never should, whatever a test was about.
    ///
    /// # Errors
    ///
    /// What has.
    pub(crate) fn expect_sound(&self) -> Result<()> {
        for agent in &self.agents {
            for reason in [DropReason::BrokenTable, DropReason::RewriteFailed] {
                let count = agent.drops(reason)?;
                ensure!(count == 0, "{} dropped {count} packets: {}", agent.node(), reason.as_str());
            }
            let log = agent.log()?;
            ensure!(!log.contains("panicked"), "the agent of {} panicked", agent.node());
        }
        Ok(())
    }

    /// Has all nodes serve nothing any more, soon.
    pub(crate) fn forget(&mut self, cluster: &Cluster) -> Result<()> {
        self.agents.iter().zip(&cluster.nodes).try_for_each(|(agent, node)| {
            agent.manifests.clear()?;
            agent.manifests.publish_node(node)
        })
    }

    /// What is logged from now on belongs to another story.
    pub(crate) fn begin_story(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::begin_story)
    }

    /// Has all nodes serve `service`, on all devices there are, and waits until they do.
    ///
    /// # Errors
    ///
    /// If one does not.
    pub fn serve(&self, service: &Service) -> Result<()> {
        self.publish(service)?;
        self.settle()
    }

    /// Waits until all nodes have put into effect whatever they were told, on all devices there are.
    ///
    /// # Errors
    ///
    /// If one does not.
    pub fn settle(&self) -> Result<()> {
        // What is told last is served last. Twice, because an agent may have read the first mark in the same pass over
        // the directory in which it read another file just before that changed.
        for _ in 0..2 {
            let marks: Vec<_> = self.agents.iter().map(Agent::mark).collect::<Result<_>>()?;
            for (agent, mark) in self.agents.iter().zip(marks) {
                agent.wait_for_mark(mark)?;
            }
        }
        self.agents.iter().try_for_each(Agent::wait_until_attached)
    }

    /// Tells all nodes to serve `service`, without waiting.
    ///
    /// # Errors
    ///
    /// If the manifests cannot be written.
    pub fn publish(&self, service: &Service) -> Result<()> {
        self.agents.iter().try_for_each(|agent| agent.manifests.publish(service))
    }

    /// Has all nodes stop serving `service`, and waits until they have.
    ///
    /// # Errors
    ///
    /// If one goes on.
    pub fn withdraw(&self, service: &Service) -> Result<()> {
        self.agents.iter().try_for_each(|agent| agent.manifests.withdraw(service))?;
        self.settle()
    }
}
