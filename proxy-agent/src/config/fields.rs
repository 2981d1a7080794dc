//! kube-proxy's fields one by one: their flags, what they are for, and which mean nothing here, and why (FLAG, CFG).

/// A leaf of kube-proxy's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Its path in the file.
    pub(super) path: &'static str,
    /// The flag that says the same; some have none.
    pub(super) flag: Option<Flag>,
    /// Why it means nothing here, if so.
    pub(super) inert: Option<&'static str>,
}

/// A flag of kube-proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// Where it stands in the help.
    pub(super) heading: &'static str,
    /// What it says; nothing for one without meaning.
    pub(super) help: &'static str,
}

/// What a flag takes, and how it is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Float,
    Verbosity,
    Duration,
    /// An empty one is as good as none (FLAG-43).
    Text(&'static str),
    List(&'static str),
    /// Names of gates with truth values.
    Gates,
    /// Names of modules with verbosities.
    Modules,
}

const fn acts(
    path: &'static str,
    name: &'static str,
    kind: Kind,
    heading: &'static str,
    help: &'static str,
) -> Field {
    Field { path, flag: Some(Flag { name, kind, heading, help }), inert: None }
}

const fn inert(path: &'static str, name: &'static str, kind: Kind, why: &'static str) -> Field {
    let flag = Flag { name, kind, heading: "Accepted for kube-proxy's sake", help: "" };
    Field { path, flag: Some(flag), inert: Some(why) }
}

const fn without_flag(path: &'static str, inert: Option<&'static str>) -> Field {
    Field { path, flag: None, inert }
}

const API: &str = "Kubernetes";
const NODE: &str = "Node and clients";
const SERVICES: &str = "Services";
const HEALTH: &str = "Health and metrics";
const LOG: &str = "Logging";

const JSON_ONLY: &str = "Sluice asks for JSON";
const STDERR_ONLY: &str = "every line goes to standard error at once";
const NO_MARKS: &str = "Sluice marks no packets";
const NO_WAITING: &str = "changes are programmed as they come";
const NO_IPVS: &str = "Sluice makes no use of ipvs";
const FLOWS: &str = "the flow table has a fixed size, and conntrack's is left alone";
const WINDOWS: &str = "of Windows";

/// All of them, in the order of kube-proxy's own configuration.
pub(super) const FIELDS: &[Field] = &[
    acts(
        "featureGates",
        "feature-gates",
        Kind::Gates,
        SERVICES,
        "Feature gates. AllowServiceExternalIPs is followed; the others of Kubernetes are accepted",
    ),
    acts(
        "clientConnection.kubeconfig",
        "kubeconfig",
        Kind::Text("FILE"),
        API,
        "How to reach the API server; without it, the pod's service account says so",
    ),
    without_flag("clientConnection.acceptContentTypes", Some(JSON_ONLY)),
    inert("clientConnection.contentType", "kube-api-content-type", Kind::Text("TYPE"), JSON_ONLY),
    acts(
        "clientConnection.qps",
        "kube-api-qps",
        Kind::Float,
        API,
        "Requests a second to the API server in the long run; negative: as many as there are [default: 5]",
    ),
    acts(
        "clientConnection.burst",
        "kube-api-burst",
        Kind::Int,
        API,
        "Requests to the API server that may follow each other at once [default: 10]",
    ),
    acts(
        "logging.format",
        "logging-format",
        Kind::Text("text|json"),
        LOG,
        "Lines for people, or one JSON object a line [default: text]",
    ),
    inert("logging.flushFrequency", "log-flush-frequency", Kind::Duration, STDERR_ONLY),
    acts(
        "logging.verbosity",
        "v",
        Kind::Verbosity,
        LOG,
        "Verbosity: from 4 on what helps to find faults, from 6 on everything. --log says it more exactly [default: 0]",
    ),
    acts(
        "logging.vmodule",
        "vmodule",
        Kind::Modules,
        LOG,
        "Verbosity of single modules of the agent, such as watch=6",
    ),
    inert("logging.options.text.splitStream", "log-text-split-stream", Kind::Bool, STDERR_ONLY),
    inert(
        "logging.options.text.infoBufferSize",
        "log-text-info-buffer-size",
        Kind::Text("BYTES"),
        STDERR_ONLY,
    ),
    inert("logging.options.json.splitStream", "log-json-split-stream", Kind::Bool, STDERR_ONLY),
    inert(
        "logging.options.json.infoBufferSize",
        "log-json-info-buffer-size",
        Kind::Text("BYTES"),
        STDERR_ONLY,
    ),
    acts(
        "hostnameOverride",
        "hostname-override",
        Kind::Text("NAME"),
        NODE,
        "Name of this node, instead of the host's name. Has effect with --config, too",
    ),
    acts(
        "bindAddress",
        "bind-address",
        Kind::Text("IP"),
        NODE,
        "The node's own address of its family, instead of the one that the Node object names. Nothing is bound to it",
    ),
    acts(
        "healthzBindAddress",
        "healthz-bind-address",
        Kind::Text("IP[:PORT]"),
        HEALTH,
        "Where /healthz and /livez are served [default: 0.0.0.0:10256]",
    ),
    acts(
        "metricsBindAddress",
        "metrics-bind-address",
        Kind::Text("IP[:PORT]"),
        HEALTH,
        "Where /metrics is served [default: 127.0.0.1:10249]",
    ),
    acts(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Kind::Bool,
        HEALTH,
        "Exit if these addresses cannot be served at, rather than try again",
    ),
    inert("enableProfiling", "profiling", Kind::Bool, "Go's profiles are of Go programs"),
    inert(
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
        Kind::Text("VERSION"),
        "no metric is hidden",
    ),
    inert(
        "mode",
        "proxy-mode",
        Kind::Text("MODE"),
        "there is one datapath, which only follows what the mode says about NodePorts by default",
    ),
    inert("iptables.masqueradeBit", "iptables-masquerade-bit", Kind::Int, NO_MARKS),
    acts(
        "iptables.masqueradeAll",
        "masquerade-all",
        Kind::Bool,
        SERVICES,
        "Rewrite the source of everything that is sent to a ClusterIP",
    ),
    acts(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Kind::Bool,
        SERVICES,
        "Whether loopback addresses have NodePorts; --localhost-nodeports overrules it [default: true]",
    ),
    acts(
        "iptables.syncPeriod",
        "iptables-sync-period",
        Kind::Duration,
        HEALTH,
        "Changes that could not be programmed for twice as long are reported as bad health [default: 30s]",
    ),
    inert("iptables.minSyncPeriod", "iptables-min-sync-period", Kind::Duration, NO_WAITING),
    acts(
        "ipvs.syncPeriod",
        "ipvs-sync-period",
        Kind::Duration,
        HEALTH,
        "The same with --proxy-mode=ipvs [default: 30s]",
    ),
    inert("ipvs.minSyncPeriod", "ipvs-min-sync-period", Kind::Duration, NO_WAITING),
    inert("ipvs.scheduler", "ipvs-scheduler", Kind::Text("NAME"), "backends are chosen at random"),
    inert("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Kind::List("CIDR,..."), NO_IPVS),
    inert("ipvs.strictARP", "ipvs-strict-arp", Kind::Bool, "no service's address is put on a device"),
    inert("ipvs.tcpTimeout", "ipvs-tcp-timeout", Kind::Duration, NO_IPVS),
    inert("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Kind::Duration, NO_IPVS),
    inert("ipvs.udpTimeout", "ipvs-udp-timeout", Kind::Duration, NO_IPVS),
    without_flag("nftables.masqueradeBit", Some(NO_MARKS)),
    without_flag("nftables.masqueradeAll", None),
    without_flag("nftables.syncPeriod", None),
    without_flag("nftables.minSyncPeriod", Some(NO_WAITING)),
    without_flag("winkernel.networkName", Some(WINDOWS)),
    without_flag("winkernel.sourceVip", Some(WINDOWS)),
    without_flag("winkernel.enableDSR", Some(WINDOWS)),
    without_flag("winkernel.rootHnsEndpointName", Some(WINDOWS)),
    without_flag("winkernel.forwardHealthCheckVip", Some(WINDOWS)),
    acts(
        "detectLocalMode",
        "detect-local-mode",
        Kind::Text("MODE"),
        NODE,
        "How packets from pods are recognised: by their source (ClusterCIDR: in --cluster-cidr; NodeCIDR: in the Node \
         object's podCIDRs), or by the device that they enter through (BridgeInterface: --pod-bridge-interface; \
         InterfaceNamePrefix: --pod-interface-name-prefix). It decides who may use the backends of other nodes behind \
         an external address with `externalTrafficPolicy: Local` [default: ClusterCIDR]",
    ),
    acts(
        "detectLocal.bridgeInterface",
        "pod-bridge-interface",
        Kind::Text("NAME"),
        NODE,
        "Bridge that this node's pods are joined to",
    ),
    acts(
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
        Kind::Text("PREFIX"),
        NODE,
        "How the names of this node's pod devices begin",
    ),
    acts(
        "clusterCIDR",
        "cluster-cidr",
        Kind::Text("CIDR,..."),
        NODE,
        "Network of the cluster's pods, or one of each family",
    ),
    acts(
        "nodePortAddresses",
        "nodeport-addresses",
        Kind::List("CIDR,..."),
        SERVICES,
        "Addresses of the node that accept NodePorts: all in these networks, or `primary` for the first of each family \
         that the Node object names. A family that no network is of accepts them on all its addresses, and so do both \
         if nothing is given",
    ),
    acts(
        "oomScoreAdj",
        "oom-score-adj",
        Kind::Int,
        NODE,
        "How soon the kernel ends the agent when memory is short, from -1000 (never) to 1000 [default: -999]",
    ),
    inert("conntrack.maxPerCore", "conntrack-max-per-core", Kind::Int, FLOWS),
    inert("conntrack.min", "conntrack-min", Kind::Int, FLOWS),
    acts(
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        Kind::Duration,
        SERVICES,
        "How long an established TCP connection may be silent; 0: as long as conntrack would let it [default: 24h]",
    ),
    acts(
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
        Kind::Duration,
        SERVICES,
        "The same for one that one side has closed [default: 1h]",
    ),
    inert(
        "conntrack.tcpBeLiberal",
        "conntrack-tcp-be-liberal",
        Kind::Bool,
        "sequence numbers are never judged",
    ),
    acts(
        "conntrack.udpTimeout",
        "conntrack-udp-timeout",
        Kind::Duration,
        SERVICES,
        "How long a UDP flow without answers may be silent; 0: as long as conntrack would let it [default: 0]",
    ),
    acts(
        "conntrack.udpStreamTimeout",
        "conntrack-udp-timeout-stream",
        Kind::Duration,
        SERVICES,
        "The same for one with answers [default: 0]",
    ),
    inert(
        "configSyncPeriod",
        "config-sync-period",
        Kind::Duration,
        "a gap in what the API server tells is closed at once",
    ),
    without_flag("portRange", Some("kube-proxy makes no use of it either")),
    without_flag("windowsRunAsService", Some(WINDOWS)),
];

/// The field of this path, or that this path leads into.
pub(super) fn field(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| {
        path.strip_prefix(field.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// The flag that sets the field of this path, or that this path leads into. Those of the block of iptables set that of
/// nftables as well (FLAG-21).
pub(super) fn flag(path: &str) -> Option<Flag> {
    let field = field(path)?;
    let same = |other: &&Field| twin(other).is_some_and(|twin| twin.path == field.path);
    field.flag.or_else(|| FIELDS.iter().find(same)?.flag)
}

/// What a flag of the block of iptables sets instead if the mode is nftables, if anything.
pub(super) fn twin(field: &Field) -> Option<&'static Field> {
    let name = field.path.strip_prefix("iptables.").filter(|name| OF_MODE.contains(name))?;
    FIELDS.iter().find(|other| other.path.strip_prefix("nftables.") == Some(name))
}

/// Fields that both blocks have, while there is one flag.
const OF_MODE: [&str; 3] = ["masqueradeAll", "syncPeriod", "minSyncPeriod"];

/// Whether its flag has effect although there is a file (LIFE-01).
pub(super) fn is_obeyed_beside_file(path: &str) -> bool {
    path == "hostnameOverride" || path.starts_with("logging.")
}
