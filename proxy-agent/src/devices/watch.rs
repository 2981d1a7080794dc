//! Asking the kernel, and hearing when it may have another answer.

use std::{
    future::{self, Future},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use nix::net::if_::if_indextoname;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteMessage},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use super::inventory::{Ifindex, Inventory};
use parse::Ways;

mod parse;

/// How long the kernel may take for its lists.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before another socket is tried.
const RETRY: Duration = Duration::from_secs(1);
/// How long events gather after a list before the next one.
const PAUSE: Duration = Duration::from_millis(20);
/// After a list that took long, a multiple of that: nodes that route for the whole internet have a million routes.
const SHARE: u32 = 4;

/// What is heard about.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No netlink socket.
    #[error("cannot open a route netlink socket")]
    Socket(#[source] std::io::Error),
    /// A list was refused.
    #[error("cannot list the network {what}")]
    List {
        /// Of what.
        what: &'static str,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
    /// No runtime to ask in.
    #[error("cannot wait for the kernel's answer")]
    Runtime(#[source] std::io::Error),
    /// The lists did not come.
    #[error("cannot list the network devices, addresses and routes: no answer within {PATIENCE:?}")]
    Timeout,
}

type Events = BoxStream<'static, Vec<NetlinkMessage<RouteNetlinkMessage>>>;

/// The devices, addresses and routes of this network namespace, and a signal for each time they may have changed.
pub struct Devices {
    handle: rtnetlink::Handle,
    events: Events,
    /// Whether something has happened since the latest list.
    stale: bool,
    /// Before that, no other list is made.
    rested: Instant,
}

impl Devices {
    /// Opens the socket.
    pub fn watch() -> Result<Self, DeviceError> {
        let (connection, handle, messages) =
            new_multicast_connection(&GROUPS).map_err(DeviceError::Socket)?;
        tokio::spawn(connection);
        let events = messages.map(|(message, _)| message).ready_chunks(256).boxed();
        Ok(Self { handle, events, stale: false, rested: Instant::now() })
    }

    /// Completes when something has happened since the latest list, and some time has passed: what happens in one go is
    /// listed once. What exactly happened is not told, so that lost events are harmless. Nothing is lost when the future
    /// is dropped.
    pub async fn changed(&mut self) {
        while !self.stale {
            match self.events.next().await {
                Some(events) => self.stale = events.iter().any(matters),
                None => self.reopen().await,
            }
        }
        sleep_until(self.rested).await;
    }

    /// The socket ends at its first error, such as ENOBUFS when events come faster than they are read.
    async fn reopen(&mut self) {
        match Self::watch() {
            Ok(fresh) => {
                *self = Self { stale: true, rested: self.rested, ..fresh };
                warn!("events of network devices were lost; listing everything again");
            }
            Err(error) => {
                warn!("{}; will try again", crate::report(&error));
                sleep(RETRY).await;
            }
        }
    }

    /// Everything there is. Devices that come or go meanwhile may be missing, and others with them: the kernel's
    /// mark for that (`NLM_F_DUMP_INTR`) does not come through rtnetlink. Ask [`name_of`] before acting on absence.
    pub async fn list(&mut self) -> Result<Inventory, DeviceError> {
        // What has happened until now is in the answer.
        while self.events.next().now_or_never().flatten().is_some() {}
        self.stale = false;
        let before = Instant::now();
        let answer = timeout(PATIENCE, self.ask()).await;
        self.rested = Instant::now() + PAUSE.max(before.elapsed() * SHARE);
        answer.map_err(|_| DeviceError::Timeout)?
    }

    async fn ask(&self) -> Result<Inventory, DeviceError> {
        let refused = |what| move |source| DeviceError::List { what, source };
        let links = self.handle.link().get().execute().map_ok(|link| parse::device(&link));
        let mut devices: Vec<_> = links.try_collect().await.map_err(refused("devices"))?;
        devices.sort_by_key(|device| device.index);
        let addresses = self.handle.address().get().execute();
        let addresses = addresses.try_filter_map(|address| future::ready(Ok(parse::address(&address))));
        let addresses = addresses.try_collect().await.map_err(refused("addresses"))?;
        let mut ways = Ways::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let mut routes = Box::pin(self.handle.route().get(query).execute());
            while let Some(route) = routes.try_next().await.map_err(refused("routes"))? {
                ways.add(&route);
            }
        }
        let Ways { gateways, defaults } = ways;
        let defaults = defaults.into_iter().map(|(family, best)| (family, best.device)).collect();
        Ok(Inventory { devices, addresses, gateways, defaults })
    }
}

/// Whether an event may change anything: most CNI plugins make a route for every pod, and none of them leads on.
fn matters(event: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &event.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => parse::leads_on(route),
        _ => true,
    }
}

/// The name of the device of this network namespace that has that number now.
#[must_use]
pub fn name_of(index: Ifindex) -> Option<String> {
    let name = if_indextoname(index.0).ok()?.into_string().ok()?;
    // nix 0.31 takes the null pointer that says "no such device" for success.
    (!name.is_empty()).then_some(name)
}

/// Everything there is, for those who ask once and may block.
pub fn list() -> Result<Inventory, DeviceError> {
    once(async { Devices::watch()?.list().await })
}

/// Waits for an answer, where nothing else is to be done meanwhile.
pub(super) fn once<T>(answer: impl Future<Output = Result<T, DeviceError>>) -> Result<T, DeviceError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DeviceError::Runtime)?;
    runtime.block_on(async { timeout(PATIENCE, answer).await.map_err(|_| DeviceError::Timeout)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_that_exist_have_names() {
        assert_eq!(name_of(Ifindex(1)).as_deref(), Some("lo"));
        assert_eq!(name_of(Ifindex(u32::MAX)), None);
    }

    #[test]
    fn the_kernel_lists_the_loopback_device_and_its_address() {
        let all = list().unwrap();
        let lo = all.device(Ifindex(1)).unwrap();
        assert_eq!((lo.name.as_str(), lo.kind), ("lo", crate::devices::DeviceKind::Loopback));
        assert!(all.gateways.iter().chain(all.defaults.values()).all(|index| all.device(*index).is_some()));
    }
}
