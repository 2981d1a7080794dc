//! The server on a machine of a cluster.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use super::ApiServer;
use crate::{netns::Namespace, topology::Machine};

/// An [`ApiServer`] that others reach over the network, on a thread of its own.
#[derive(Debug)]
pub struct HostedApi {
    /// The server.
    pub server: Arc<ApiServer>,
    namespace: Namespace,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// As long as this is held, the server accepts connections, as its kernel does that for it, and answers nothing.
#[derive(Debug)]
pub struct Hang(
    #[expect(dead_code, reason = "its end is what the server's thread waits for")] mpsc::Sender<()>,
);

impl HostedApi {
    /// Starts one on a free port of the machine's IPv4 address.
    ///
    /// # Errors
    ///
    /// If there is no such port.
    pub fn start(machine: &Machine) -> Result<Self> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (namespace, address) =
            (machine.namespace.clone(), SocketAddr::new(machine.addresses.v4.into(), 0));
        let thread = thread::spawn(move || {
            let start = || {
                namespace.enter()?;
                let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
                let server = runtime.block_on(ApiServer::start_at(address))?;
                Ok((runtime, server))
            };
            match start() {
                Ok((runtime, server)) => {
                    drop(ready.send(Ok((runtime.handle().clone(), server))));
                    // Whoever is to stop it has gone if this fails.
                    drop(runtime.block_on(stopped));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let (runtime, server) =
            started.recv().context("the server's thread ended").and_then(|result| result)?;
        let namespace = machine.namespace.clone();
        Ok(Self { server: Arc::new(server), namespace, runtime, stop: Some(stop), thread: Some(thread) })
    }

    /// Has it break all connections and refuse new ones, as if it had been killed.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn go_down(&self) -> Result<()> {
        let server = Arc::clone(&self.server);
        self.on_its_thread(async move {
            server.go_down().await;
            Ok(())
        })
    }

    /// Has it accept connections again.
    ///
    /// # Errors
    ///
    /// If its port is taken.
    pub fn come_up(&self) -> Result<()> {
        let server = Arc::clone(&self.server);
        self.on_its_thread(async move { Ok(server.come_up().await?) })
    }

    /// Has it do nothing, as if its process were stopped.
    #[must_use]
    pub fn hang(&self) -> Hang {
        let (hold, end) = mpsc::channel();
        let (begin, begun) = mpsc::channel::<()>();
        self.runtime.spawn(async move {
            drop(begin);
            end.recv().ok()
        });
        // Until it is at it.
        begun.recv().unwrap_or_default();
        Hang(hold)
    }

    /// Whether what it sends to an address vanishes: from there, it looks as if the network had been cut.
    ///
    /// # Errors
    ///
    /// If that is so already.
    pub fn partition(&self, from: SocketAddr, is_cut: bool) -> Result<()> {
        let action = if is_cut { "add" } else { "del" };
        self.namespace.ip(&format!("route {action} blackhole {}/32", from.ip()))
    }

    fn on_its_thread(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
        let (done, result) = mpsc::channel();
        self.runtime.spawn(async move { done.send(work.await).ok() });
        result.recv().context("the server's thread ended")?
    }
}

impl Drop for HostedApi {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the clients have noticed.
            drop(thread.join());
        }
    }
}
