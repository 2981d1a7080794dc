//! The sockets of one health check.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::super::{
    listen::listen_to_family,
    serve::{Server, Service},
};

/// A health check that is answered.
#[derive(Debug)]
pub(super) struct Open {
    port: NonZeroU16,
    servers: BTreeMap<IpAddr, Server>,
    count: Arc<AtomicUsize>,
}

impl Open {
    /// Without sockets yet, and without endpoints.
    pub(super) fn new(port: NonZeroU16) -> Self {
        Self { port, servers: BTreeMap::new(), count: Arc::default() }
    }

    pub(super) const fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// What its servers read the number of endpoints from.
    pub(super) fn counter(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.count)
    }

    /// So many endpoints there are.
    pub(super) fn count(&self, endpoints: usize) {
        self.count.store(endpoints, Ordering::Relaxed);
    }

    /// Listens at these addresses, if it does not yet.
    pub(super) fn open(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        service: &impl Service,
    ) -> Result<(), (SocketAddr, io::Error)> {
        for &ip in addresses {
            if !self.servers.contains_key(&ip) {
                let address = SocketAddr::new(ip, self.port.get());
                let listener = listen_to_family(address).map_err(|error| (address, error))?;
                self.servers.insert(ip, Server::start(listener, service.clone()));
            }
        }
        Ok(())
    }

    /// Listens no longer at any other addresses.
    pub(super) async fn close_others(&mut self, addresses: &BTreeSet<IpAddr>) {
        let others: Vec<IpAddr> = self.servers.keys().filter(|ip| !addresses.contains(ip)).copied().collect();
        for ip in others {
            if let Some(server) = self.servers.remove(&ip) {
                server.close().await;
            }
        }
    }

    /// Listens no longer, and returns when the port is free.
    pub(super) async fn close(self) {
        for server in self.servers.into_values() {
            server.close().await;
        }
    }
}
