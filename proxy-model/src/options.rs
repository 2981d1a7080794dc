//! What the node's administrator says: the flags of kube-proxy that the model obeys.

use std::{net::IpAddr, str::FromStr};

use crate::{
    cidr::{Cidr, ParseCidrError},
    name::Family,
    policy::{BackendSelection, ExternalForwarding},
};

/// Everything that does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of this node, as Nodes and endpoints write it (NODE-01).
    pub node_name: String,
    /// The node's own address for its family, if it is a specific one, whatever the Node object says (NODE-04).
    pub bind_address: Option<IpAddr>,
    /// Which of the node's addresses accept NodePorts (NP-05 to NP-09).
    pub node_port_addresses: NodePortAddresses,
    /// How packets from pods are recognised (DLOC).
    pub detect_local: DetectLocal,
    /// Whether the source of every packet to a ClusterIP is rewritten (MASQ-01).
    pub masquerade_all: bool,
    /// Whether `spec.externalIPs` are served (XIP-03).
    pub external_ips: bool,
    /// How clients outside get a backend, where a Service does not say.
    pub backend_selection: BackendSelection,
    /// How their packets get to backends on other nodes, where a Service does not say.
    pub external_forwarding: ExternalForwarding,
    /// Whether to tell which pods are served at their sockets.
    pub follow_pods: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            bind_address: None,
            node_port_addresses: NodePortAddresses::default(),
            detect_local: DetectLocal::default(),
            masquerade_all: false,
            external_ips: true,
            backend_selection: BackendSelection::default(),
            external_forwarding: ExternalForwarding::default(),
            follow_pods: false,
        }
    }
}

impl Options {
    /// The defaults on a node of this name.
    #[must_use]
    pub fn on_node(name: &str) -> Self {
        Self { node_name: name.to_owned(), ..Self::default() }
    }
}

/// Which addresses of the node accept NodePorts. Loopback addresses never do (NP-11).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All (NP-06). The default, as in kube-proxy's iptables mode (NP-09).
    #[default]
    All,
    /// The first of each family that the Node object names (NP-08).
    ///
    /// Unlike kube-proxy, a family of which it names none accepts no NodePorts, rather than all: who asks for one
    /// address does not mean every other.
    Primary,
    /// Those in these networks. A family without a network here accepts all, and so does one whose networks contain
    /// everything (NP-05).
    Networks(Vec<Cidr>),
}

impl NodePortAddresses {
    /// From the entries of `nodePortAddresses`, which may be lists with commas themselves.
    ///
    /// # Errors
    ///
    /// If an entry is neither a network nor `primary`, or if `primary` is not alone.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, ParseOptionError> {
        let entries = split(entries);
        match &entries[..] {
            [] => return Ok(Self::All),
            ["primary"] => return Ok(Self::Primary),
            entries if entries.contains(&"primary") => {
                return Err(ParseOptionError::PrimaryNotAlone { value: entries.join(",") });
            }
            _ => {}
        }
        Ok(Self::Networks(networks(&entries, "nor `primary`")?))
    }

    /// Whether an address of the node accepts NodePorts, if the node's own addresses are `primary`.
    pub(crate) fn accept(&self, ip: IpAddr, primary: &[IpAddr]) -> bool {
        match self {
            Self::All => true,
            Self::Primary => primary.contains(&ip),
            Self::Networks(networks) => {
                let mut own = networks.iter().filter(|network| network.family() == Family::of(ip)).peekable();
                own.peek().is_none() || own.any(|network| network.contains(ip))
            }
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = ParseOptionError;

    /// From a list with commas.
    fn from_str(text: &str) -> Result<Self, ParseOptionError> {
        Self::parse([text])
    }
}

/// How packets from pods are told from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Not at all (DLOC-05).
    #[default]
    Off,
    /// Their source is in the first of these networks that is of its family (DLOC-01).
    ClusterCidr(Vec<Cidr>),
    /// Their source is in the first of this Node's `podCIDRs` that is of its family (DLOC-02).
    NodeCidr,
    /// By the device that they come through (DLOC-03, DLOC-04). The table of devices says which; the model has nothing
    /// to do with it.
    ByDevice,
}

impl DetectLocal {
    /// From a `clusterCIDR`: one network, or two of different families, with a comma between them. Without any, nothing
    /// is detected (DLOC-05).
    ///
    /// # Errors
    ///
    /// If something else is there (LIFE-03).
    pub fn cluster_cidr(text: &str) -> Result<Self, ParseOptionError> {
        let networks = networks(&split([text]), "and `clusterCIDR` is made of them")?;
        match networks[..] {
            [] | [_] => {}
            [a, b] if a.family() != b.family() => {}
            _ => return Err(ParseOptionError::TooManyNetworks { value: text.to_owned() }),
        }
        Ok(Self::ClusterCidr(networks))
    }
}

/// An option that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseOptionError {
    /// Something is not a network.
    #[error("{value:?} {source}, {remark}")]
    NotANetwork {
        /// What it is.
        value: String,
        /// What is wrong with it.
        source: ParseCidrError,
        /// What else there is to say.
        remark: &'static str,
    },
    /// `primary` stands for all addresses that are accepted.
    #[error("{value:?} mixes `primary` with networks: give one or the other")]
    PrimaryNotAlone {
        /// The whole list.
        value: String,
    },
    /// More networks than families.
    #[error("{value:?} names too many networks: give one, or one of each family")]
    TooManyNetworks {
        /// The whole list.
        value: String,
    },
}

/// The entries of lists with commas, without blanks.
fn split<'a>(entries: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let entries = entries.into_iter().flat_map(|entry| entry.split(',')).map(str::trim);
    entries.filter(|entry| !entry.is_empty()).collect()
}

fn networks(entries: &[&str], remark: &'static str) -> Result<Vec<Cidr>, ParseOptionError> {
    let parse = |entry: &&str| {
        entry.parse().map_err(|source| ParseOptionError::NotANetwork {
            value: (*entry).to_owned(),
            source,
            remark,
        })
    };
    entries.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(list: &str, ips: &[&str]) -> Vec<String> {
        let addresses: NodePortAddresses = list.parse().unwrap();
        let primary = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let accepted = ips.iter().filter(|ip| addresses.accept(ip.parse().unwrap(), &primary));
        accepted.map(ToString::to_string).collect()
    }

    /// NP-05, NP-06, NP-08, NP-09; VER-24.
    #[test]
    fn each_family_accepts_what_its_networks_contain() {
        let ips = ["192.0.2.1", "192.0.2.9", "10.0.0.1", "2001:db8::1", "fe80::1"];
        for (list, expected) in [
            ("", &ips[..]),
            (" , ", &ips),
            ("0.0.0.0/0", &ips),
            ("10.0.0.0/8,0.0.0.0/0", &ips),
            ("192.0.2.0/24", &["192.0.2.1", "192.0.2.9", "2001:db8::1", "fe80::1"]),
            ("192.0.2.000/024 , 2001:db8::/32", &["192.0.2.1", "192.0.2.9", "2001:db8::1"]),
            ("2001:db8::/32", &["192.0.2.1", "192.0.2.9", "10.0.0.1", "2001:db8::1"]),
            ("172.16.0.0/12,::1/128", &[]),
            ("primary", &["192.0.2.1", "2001:db8::1"]),
        ] {
            assert_eq!(accepted(list, &ips), expected, "{list:?}");
        }
        let repeated = NodePortAddresses::parse(["10.0.0.0/8", "fd00::/8,192.0.2.0/24"]).unwrap();
        assert_eq!(
            repeated,
            NodePortAddresses::Networks(vec![
                "10.0.0.0/8".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
                "192.0.2.0/24".parse().unwrap(),
            ])
        );
    }

    /// NP-08, NODE-03: there are no placeholders.
    #[test]
    fn a_family_without_a_primary_address_accepts_nothing() {
        assert!(
            !NodePortAddresses::Primary.accept("fe80::1".parse().unwrap(), &["192.0.2.1".parse().unwrap()])
        );
        assert!(!NodePortAddresses::Primary.accept("192.0.2.1".parse().unwrap(), &[]));
    }

    #[test]
    fn an_entry_that_means_nothing_is_named() {
        let said = |list: &str| list.parse::<NodePortAddresses>().unwrap_err().to_string();
        assert_eq!(
            said("10.0.0.0/8,10.0.0.1"),
            "\"10.0.0.1\" is not a network, such as 10.0.0.0/8 or fd00::/8, nor `primary`"
        );
        assert_eq!(
            said("primary,10.0.0.0/8"),
            "\"primary,10.0.0.0/8\" mixes `primary` with networks: give one or the other"
        );
        assert_eq!(
            said("Primary"),
            "\"Primary\" is not a network, such as 10.0.0.0/8 or fd00::/8, nor `primary`"
        );
    }

    /// DLOC-01, DLOC-05, LIFE-03.
    #[test]
    fn a_cluster_has_one_network_per_family() {
        for (text, expected) in [
            ("", &[][..]),
            ("10.244.0.0/16", &["10.244.0.0/16"]),
            ("10.244.0.0/016, fd00:10:244::/56", &["10.244.0.0/16", "fd00:10:244::/56"]),
            ("fd00:10:244::/56,10.244.0.0/16", &["fd00:10:244::/56", "10.244.0.0/16"]),
        ] {
            let expected = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(DetectLocal::cluster_cidr(text), Ok(DetectLocal::ClusterCidr(expected)), "{text}");
        }
        let said = |text: &str| DetectLocal::cluster_cidr(text).unwrap_err().to_string();
        let many = "names too many networks: give one, or one of each family";
        for text in ["10.0.0.0/8,11.0.0.0/8", "10.0.0.0/8,fd00::/8,11.0.0.0/8"] {
            assert_eq!(said(text), format!("{text:?} {many}"));
        }
        assert_eq!(
            said("10.0.0.0"),
            "\"10.0.0.0\" is not a network, such as 10.0.0.0/8 or fd00::/8, and `clusterCIDR` is made of them"
        );
    }
}
