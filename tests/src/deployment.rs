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
    /// Starts an agent on every node and waits until all are up.
    ///
    /// # Errors
    ///
    /// If one does not come up.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Ok(Self { agents: cluster.nodes.iter().map(Agent::start).collect::<Result<_>>()? })
    }

    /// Has all nodes serve `service`, on all devices there are, and waits until they do.
    ///
    /// # Errors
    ///
    /// If one does not.
    pub fn serve(&self, service: &Service) -> Result<()> {
        self.publish(service)?;
        self.agents.iter().try_for_each(|agent| {
            agent.wait_for_service(service)?;
            agent.wait_until_attached()
        })
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
        self.agents.iter().try_for_each(|agent| agent.wait_for_absence(service))
    }
}
