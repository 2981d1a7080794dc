//! What is answered.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::show::{BackendState, FlowRow, FrontendKind};

/// What becomes of a new connection, or of the first datagram, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Who wants to talk.
    pub client: Client,
    /// To whom.
    pub destination: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Where that is decided.
    pub path: Path,
    /// The programs that decide it, as they are attached.
    pub hooks: Vec<AttachedHook>,
    /// The frontend that is addressed; `null` if none is.
    pub frontend: Option<MatchedFrontend>,
    /// Frontends at the same address, if none is addressed: `80/TCP`.
    pub other_ports: Vec<String>,
    /// Whether source ranges admit the client; `null` if nobody asks.
    pub source_ranges: Option<SourceRanges>,
    /// Whether the client counts as inside the cluster; `null` if nobody asks.
    pub origin: Option<Origin>,
    /// Which backends the client may reach; `null` without a frontend.
    pub set: Option<ChosenSet>,
    /// Whom the client is used to; `null` without session affinity.
    pub affinity: Option<AffinityMapping>,
    /// All backends of the service port.
    pub backends: Vec<Candidate>,
    /// The flows that the client has with this frontend.
    pub flows: Vec<FlowRow>,
    /// What is wrong with the objects of the service, as far as objects were given.
    pub problems: Vec<String>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Who wants to talk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Its address; `null` for a process of the node.
    pub address: Option<IpAddr>,
    /// Its port, if one was given.
    pub port: Option<u16>,
    /// Whether it is a process in the node's own network.
    pub is_host: bool,
    /// The number of the device that its packets come by.
    pub device: Option<u32>,
    /// Its name.
    pub device_name: Option<String>,
    /// How that device was found.
    pub device_found: Option<&'static str>,
    /// What decides whether the TCP of its pod is served at its sockets; `null` if nobody asks.
    pub pod_reason: Option<&'static str>,
    /// Whether that device has local clients, who keep their addresses towards backends on other nodes.
    pub local_clients: Option<bool>,
}

/// Where a decision is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// When a socket connects or sends.
    Socket,
    /// When a packet enters the node.
    Tc,
    /// Nowhere: nothing of Sluice's sees it.
    None,
}

/// A program in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedHook {
    /// Its name.
    pub program: &'static str,
    /// Its kernel id.
    pub id: Option<u32>,
}

/// The frontend that is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatchedFrontend {
    /// By which rule: `exact`, or `node-port`.
    pub rule: &'static str,
    /// What kind it is.
    pub kind: FrontendKind,
    /// The service port that it belongs to.
    pub service: String,
    /// What it does beyond choosing a backend.
    pub flags: Vec<&'static str>,
}

/// Whether source ranges admit a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceRanges {
    /// Whether they do.
    pub admitted: bool,
    /// The address that was asked about.
    pub asked: IpAddr,
    /// The ranges.
    pub ranges: Vec<String>,
}

/// Whether a client counts as inside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Whether it does.
    pub inside: bool,
    /// Why.
    pub why: String,
}

/// Which backends a client may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChosenSet {
    /// `cluster`: those on any node. `local`: those on this node.
    pub name: &'static str,
    /// Why these.
    pub why: &'static str,
    /// Whether the hash of the client's address and port says which of them, once session affinity has said nothing.
    pub by_hash: bool,
    /// Whether those on other nodes answer clients outside themselves.
    pub dsr: bool,
    /// How many there are.
    pub backends: usize,
}

/// Whom a client is used to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinityMapping {
    /// How long that lasts after the last new connection.
    pub seconds: u32,
    /// The backend of the client's last connection; `null` if it is new, or was forgotten.
    pub backend: Option<SocketAddr>,
    /// How long ago that connection began.
    pub age_seconds: Option<u32>,
    /// Whether it decides.
    pub counts: bool,
}

/// A backend of the service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Address and port.
    pub address: SocketAddr,
    /// Its id in the tables; `null` if it is in the objects alone.
    pub id: Option<u32>,
    /// How it is; `null` if it is in the objects alone.
    pub state: Option<BackendState>,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether it is in the set.
    pub in_set: bool,
    /// Whether the client may be led there.
    pub possible: bool,
    /// Why it is not in the set, or why the client is not led there; as the kernel's records tell.
    pub why_not: Option<String>,
    /// Whether the client's source is rewritten on the way there; `null` if the client is not led there.
    pub masqueraded: Option<bool>,
    /// Why.
    pub masqueraded_why: Option<&'static str>,
    /// As whom it then sees the client, if that is known.
    pub seen_as: Option<IpAddr>,
    /// What the objects say, if they were given.
    pub objects: Option<ObjectVerdict>,
}

/// What the objects say of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectVerdict {
    /// Its condition of that name.
    pub ready: bool,
    /// The same.
    pub serving: bool,
    /// The same.
    pub terminating: bool,
    /// Whether it should be in the set.
    pub in_set: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In a word.
    pub outcome: Outcome,
    /// The reason that is counted for it, if it is not served.
    pub reason: Option<&'static str>,
    /// In a sentence.
    pub text: String,
}

/// What becomes of a connection, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It gets a backend.
    Served,
    /// Its client is told that nobody listens.
    Refused,
    /// It is dropped without a word; a process of the node hears that there is no way.
    Dropped,
    /// It is over, and its client is told.
    Reset,
    /// It is left as it is.
    Passed,
}
