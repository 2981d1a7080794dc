//! An agent on every node of a cluster.

use anyhow::Result;

use crate::{agent::Agent, service::Service, topology::Cluster};

/// The agents of a cluster, which are all told the same.
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
        let start = |node| Agent::start(node, arguments);
        Ok(Self { agents: cluster.nodes.iter().map(start).collect::<Result<_>>()? })
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
