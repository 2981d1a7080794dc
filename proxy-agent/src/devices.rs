//! The node's network devices, and which of them the datapath belongs on.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use nix::net::if_::if_indextoname;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// How long the kernel may take to list the devices.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before another socket is tried.
const RETRY: Duration = Duration::from_secs(1);

/// A device's number in its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifindex(pub u32);

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Number.
    pub index: Ifindex,
    /// Name.
    pub name: String,
    /// What it is, as far as that decides anything.
    pub kind: DeviceKind,
    /// The bridge or bond that it is a port of.
    pub controller: Option<Ifindex>,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The loopback device.
    Loopback,
    /// A bridge.
    Bridge,
    /// A bond or team.
    Bond,
    /// Another device with Ethernet headers.
    Ethernet,
    /// A device whose packets have no Ethernet header.
    Headerless,
}

/// Why the datapath stays off a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Only this node talks to itself there.
    Loopback,
    /// Its packets are seen at its ports.
    BridgeWithPorts,
    /// Its packets are seen at the bond.
    PortOfBond,
    /// Not supported yet.
    NoEthernetHeader,
}

impl Skip {
    /// The reason in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::BridgeWithPorts => "bridge, its ports are covered",
            Self::PortOfBond => "port of a bond, the bond is covered",
            Self::NoEthernetHeader => "no Ethernet header, not supported yet",
        }
    }
}

/// Why devices cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No netlink socket.
    #[error("cannot open a route netlink socket")]
    Socket(#[source] std::io::Error),
    /// The list was refused.
    #[error("cannot list the network devices")]
    List(#[source] rtnetlink::Error),
    /// No runtime to ask in.
    #[error("cannot wait for the kernel's answer")]
    Runtime(#[source] std::io::Error),
    /// The list did not come.
    #[error("cannot list the network devices: no answer within {PATIENCE:?}")]
    Timeout,
}

/// Whether the datapath belongs on `device`, given all devices: on every one where traffic enters or leaves the
/// node, and only once on its way.
pub fn placement(device: &Device, all: &[Device]) -> Result<(), Skip> {
    let controller = device.controller.and_then(|index| all.iter().find(|other| other.index == index));
    match device.kind {
        DeviceKind::Loopback => Err(Skip::Loopback),
        DeviceKind::Headerless => Err(Skip::NoEthernetHeader),
        DeviceKind::Bridge if all.iter().any(|other| other.controller == Some(device.index)) => {
            Err(Skip::BridgeWithPorts)
        }
        _ if controller.is_some_and(|controller| controller.kind == DeviceKind::Bond) => {
            Err(Skip::PortOfBond)
        }
        _ => Ok(()),
    }
}

/// The name of the device of this network namespace that has that number now.
#[must_use]
pub fn name_of(index: Ifindex) -> Option<String> {
    let name = if_indextoname(index.0).ok()?.into_string().ok()?;
    // nix 0.31 takes the null pointer that says "no such device" for success.
    (!name.is_empty()).then_some(name)
}

/// The devices of this network namespace, and a signal for each time they may have changed.
pub struct Devices {
    handle: rtnetlink::Handle,
    bursts: BoxStream<'static, ()>,
}

impl Devices {
    /// Opens the socket.
    pub fn watch() -> Result<Self, DeviceError> {
        let (connection, handle, messages) =
            new_multicast_connection(&[MulticastGroup::Link]).map_err(DeviceError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, bursts: messages.ready_chunks(256).map(|_| ()).boxed() })
    }

    /// Completes after the next burst of link events. What exactly happened is not told, so that lost events are
    /// harmless: list again. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        if self.bursts.next().await.is_some() {
            return;
        }
        // The socket ends at its first error, such as ENOBUFS when events come faster than they are read.
        match Self::watch() {
            Ok(fresh) => {
                *self = fresh;
                warn!("events of network devices were lost; listing the devices again");
            }
            Err(error) => {
                warn!("{}; will try again", crate::report(&error));
                sleep(RETRY).await;
            }
        }
    }

    /// All devices, by number. Devices that come or go meanwhile may be missing, and others with them: the kernel's
    /// mark for that (`NLM_F_DUMP_INTR`) does not come through rtnetlink. Ask [`name_of`] before acting on absence.
    pub async fn list(&self) -> Result<Vec<Device>, DeviceError> {
        let messages = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let messages = timeout(PATIENCE, messages)
            .await
            .map_err(|_| DeviceError::Timeout)?
            .map_err(DeviceError::List)?;
        let mut devices: Vec<_> = messages.iter().map(parse).collect();
        devices.sort_by_key(|device| device.index);
        Ok(devices)
    }
}

/// All devices, by number, for those who ask once and may block.
pub fn list() -> Result<Vec<Device>, DeviceError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DeviceError::Runtime)?;
    runtime.block_on(async { Devices::watch()?.list().await })
}

fn parse(message: &LinkMessage) -> Device {
    let index = Ifindex(message.header.index);
    let mut name = format!("#{}", index.0);
    let mut controller = None;
    let mut link_kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name.clone_from(value),
            LinkAttribute::Controller(value) if *value != 0 => controller = Some(Ifindex(*value)),
            LinkAttribute::LinkInfo(infos) => {
                link_kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let kind = match (message.header.link_layer_type, link_kind) {
        _ if message.header.flags.contains(LinkFlags::Loopback) => DeviceKind::Loopback,
        (_, Some(InfoKind::Bridge)) => DeviceKind::Bridge,
        (_, Some(InfoKind::Bond)) => DeviceKind::Bond,
        (_, Some(InfoKind::Other(kind))) if kind == "team" => DeviceKind::Bond,
        (LinkLayerType::Ether, _) => DeviceKind::Ethernet,
        _ => DeviceKind::Headerless,
    };
    Device { index, name, kind, controller }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, kind: DeviceKind, controller: Option<u32>) -> Device {
        Device { index: Ifindex(index), name: format!("d{index}"), kind, controller: controller.map(Ifindex) }
    }

    #[test]
    fn each_packet_is_met_once() {
        let all = [
            device(1, DeviceKind::Loopback, None),
            device(2, DeviceKind::Bond, None),
            device(3, DeviceKind::Ethernet, Some(2)),
            device(4, DeviceKind::Bridge, None),
            device(5, DeviceKind::Ethernet, Some(4)),
            device(6, DeviceKind::Bridge, None),
            device(7, DeviceKind::Headerless, None),
            device(8, DeviceKind::Ethernet, None),
        ];
        let skips: Vec<_> = all.iter().map(|device| placement(device, &all).err()).collect();
        let expected = [
            Some(Skip::Loopback),
            None,
            Some(Skip::PortOfBond),
            Some(Skip::BridgeWithPorts),
            None,
            None,
            Some(Skip::NoEthernetHeader),
            None,
        ];
        assert_eq!(skips, expected);
    }

    #[test]
    fn only_devices_that_exist_have_names() {
        assert_eq!(name_of(Ifindex(1)).as_deref(), Some("lo"));
        assert_eq!(name_of(Ifindex(u32::MAX)), None);
    }
}
