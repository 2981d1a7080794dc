//! What clusters are given to run the agent: `deploy/sluice.yaml`, and what helm makes of the chart.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use clap::CommandFactory as _;
use k8s_openapi::{
    api::{
        core::v1::{Container, Node, Probe, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use proxy_agent::cli::Cli;
use sluice_tests::{
    apiserver::{ApiServer, Request},
    harness::unsupported,
    shipped::{self, Shipped},
};

use super::follow::Follower;

/// Verb, API group, resource.
type Permission = (String, String, String);

/// What the in-process server cannot be asked for: the agent writes it.
const WRITTEN: [(&str, &str, &str); 1] = [("create", "events.k8s.io", "events")];

fn permission((verb, group, resource): (&str, &str, &str)) -> Permission {
    (verb.to_owned(), group.to_owned(), resource.to_owned())
}

/// What a request needs, as the API server's authorizer reads it.
fn needed(request: &Request) -> Permission {
    let path: Vec<_> = request.path.split('/').skip(1).collect();
    let (group, rest) = match &path[..] {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => panic!("{request:?} is for no resource"),
    };
    let [resource] = rest else { panic!("{request:?} is not for all objects of a kind") };
    let verb = if request.is_watch(resource) { "watch" } else { "list" };
    permission((verb, group, resource))
}

/// What the role grants.
fn granted(shipped: &Shipped) -> BTreeSet<Permission> {
    let mut granted = BTreeSet::new();
    for rule in shipped.role.rules.as_ref().unwrap() {
        assert!(rule.resource_names.is_none() && rule.non_resource_urls.is_none(), "{rule:?}");
        for verb in &rule.verbs {
            for group in rule.api_groups.as_ref().unwrap() {
                for resource in rule.resources.as_ref().unwrap() {
                    assert!(
                        granted.insert(permission((verb, group, resource))),
                        "{resource} is granted twice"
                    );
                }
            }
        }
    }
    granted
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_grants_what_the_agent_asks_for_and_nothing_else() {
    let server = ApiServer::start().await.unwrap();
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until_listed().await;
    server.watched::<Service>(1).await;
    server.watched::<EndpointSlice>(1).await;
    server.watched::<Node>(1).await;
    let asked: BTreeSet<_> = server.requests().iter().map(needed).collect();
    let written = WRITTEN.map(permission);
    let all: BTreeSet<_> = asked.into_iter().chain(written).collect();
    assert_eq!(granted(&Shipped::read().unwrap()), all);
}

/// Checks what no type says: that names which belong together are the same.
fn expect_consistent(shipped: &Shipped) {
    let namespace = shipped.daemon_set.metadata.namespace.as_ref().unwrap();
    let account = shipped.account.metadata.name.as_ref().unwrap();
    assert_eq!(shipped.account.metadata.namespace.as_ref(), Some(namespace));
    assert_eq!(shipped.binding.role_ref.kind, "ClusterRole");
    assert_eq!(Some(&shipped.binding.role_ref.name), shipped.role.metadata.name.as_ref());
    let [subject] = &shipped.binding.subjects.as_ref().unwrap()[..] else { panic!("one subject") };
    assert_eq!((&*subject.kind, &subject.name), ("ServiceAccount", account));
    assert_eq!(subject.namespace.as_ref(), Some(namespace));

    let spec = &shipped.daemon_set.spec;
    let labels = spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
    let selected = spec.selector.match_labels.as_ref().unwrap();
    assert!(selected.iter().all(|(name, value)| labels.get(name) == Some(value)), "{selected:?} {labels:?}");
    let pod = shipped.pod().unwrap();
    assert_eq!(pod.service_account_name.as_ref(), Some(account));
    assert_eq!(pod.host_network, Some(true));
    let container = shipped.container().unwrap();
    expect_confined(shipped);

    let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|volume| &volume.name).collect();
    let mounts: BTreeSet<_> = container.volume_mounts.iter().flatten().map(|mount| &mount.name).collect();
    assert_eq!(volumes, mounts);
    let environment = container.env.as_ref().unwrap().iter();
    let pins = environment.clone().find(|variable| variable.name == "SLUICE_BPFFS").unwrap();
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.name == "bpffs").unwrap();
    assert_eq!(pins.value.as_ref(), Some(&mount.mount_path));
    assert!(mount.read_only.is_none_or(|is_read_only| !is_read_only));
    for (probe, path) in [
        (&container.startup_probe, "/livez"),
        (&container.readiness_probe, "/readyz"),
        (&container.liveness_probe, "/livez"),
    ] {
        expect_probe(container, probe.as_ref().unwrap(), path);
    }
    // $(NAME) of a variable that does not exist would be passed on as it is.
    for argument in container.args.iter().flatten() {
        let used = argument.split_once("$(").and_then(|(_, rest)| Some(rest.split_once(')')?.0));
        let is_set = |name: &str| environment.clone().any(|variable| variable.name == name);
        assert!(used.is_none_or(is_set), "{argument}");
    }
}

fn expect_confined(shipped: &Shipped) {
    let security = shipped.security().unwrap();
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let capabilities = shipped.capabilities().unwrap();
    assert_eq!(capabilities, ["BPF", "NET_ADMIN", "PERFMON"].map(str::to_owned).into());
    let pod = shipped.pod().unwrap();
    assert!(pod.host_pid.is_none() && pod.host_ipc.is_none());
}

fn expect_probe(container: &Container, probe: &Probe, path: &str) {
    let get = probe.http_get.as_ref().unwrap();
    assert_eq!(get.path.as_deref(), Some(path));
    let IntOrString::String(port) = &get.port else { panic!("{:?} has no name", get.port) };
    let mut ports = container.ports.iter().flatten();
    assert!(ports.any(|named| named.name.as_ref() == Some(port)), "no port is called {port}");
}

#[test]
fn the_plain_manifest_fits_together() {
    let shipped = Shipped::read().unwrap();
    expect_consistent(&shipped);
    assert!(shipped.config.is_none(), "the cluster has one");
    let image = shipped.container().unwrap().image.as_ref().unwrap();
    assert_eq!(image, concat!("localhost/sluice:", env!("CARGO_PKG_VERSION")));
    let pod = shipped.pod().unwrap();
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let [toleration] = &pod.tolerations.as_ref().unwrap()[..] else { panic!("one toleration") };
    assert_eq!((toleration.operator.as_deref(), &toleration.key), (Some("Exists"), &None));
}

#[test]
fn the_agent_knows_the_flags_that_it_is_given() {
    let shipped = Shipped::read().unwrap();
    let arguments = shipped.container().unwrap().args.clone().unwrap();
    let (command, flags) = arguments.split_first().unwrap();
    let cli = Cli::command();
    let command = cli.find_subcommand(command).unwrap();
    let known: BTreeSet<_> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let names = flags.iter().map(|flag| flag.split_once('=').map_or(&**flag, |(name, _)| name));
    let unknown: Vec<_> = names.filter(|name| !known.contains(name.trim_start_matches("--"))).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

/// What helm renders with these on its command line, or what it has against them.
fn render(values: &[&str]) -> Option<Result<Shipped, String>> {
    let chart: PathBuf = shipped::directory().join("chart/sluice");
    let mut helm = Command::new("helm");
    helm.args(["template", "sluice", "--namespace", "kube-system"]).arg(chart).args(values);
    let Ok(Output { status, stdout, stderr }) = helm.output() else {
        unsupported(&anyhow::anyhow!("helm is not installed"));
        return None;
    };
    if !status.success() {
        return Some(Err(String::from_utf8_lossy(&stderr).into_owned()));
    }
    Some(Ok(Shipped::parse(&String::from_utf8(stdout).unwrap()).unwrap()))
}

#[test]
fn the_chart_renders_what_its_values_say() {
    let Some(rendered) = render(&[
        "--set-json=kubeProxyConfig.inline={\"mode\": \"nftables\", \"clusterCIDR\": \"10.244.0.0/16,fd00:10:244::/56\"}",
        "--set=apiServers={https://192.0.2.1:6443,https://[2001:db8::1]:6443}",
        "--set=extraArgs={--socket-lb=on}",
        "--set=rbac.pods=true",
        "--set=serviceAccount.name=proxy",
        "--set=image.repository=registry.example:5000/sluice",
        "--set=image.tag=v9",
        "--set=image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "--set=appArmorProfile.type=Unconfined",
        "--set=seLinuxOptions.type=spc_t",
        "--set=podLabels.team=net,podAnnotations.note=x",
        "--set=imagePullSecrets[0].name=registry",
        "--set=updateStrategy.rollingUpdate.maxUnavailable=10%",
        "--set=healthzPort=10356",
    ]) else {
        return;
    };
    let shipped = rendered.unwrap();
    expect_consistent(&shipped);
    let reads_pods = |verb| permission((verb, "", "pods"));
    assert!(granted(&shipped).is_superset(&["list", "watch"].map(reads_pods).into()));
    let container = shipped.container().unwrap();
    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let image = format!("registry.example:5000/sluice:v9@{digest}");
    assert_eq!(container.image.as_ref(), Some(&image));
    let arguments = container.args.as_ref().unwrap();
    assert_eq!(
        arguments,
        &[
            "run",
            "--config=/var/lib/kube-proxy/config.conf",
            "--hostname-override=$(NODE_NAME)",
            "--api-servers=https://192.0.2.1:6443,https://[2001:db8::1]:6443",
            "--socket-lb=on",
        ]
    );
    let config = shipped.config.as_ref().unwrap();
    let text = &config.data.as_ref().unwrap()["config.conf"];
    let config: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    assert_eq!(config["kind"], "KubeProxyConfiguration");
    assert_eq!(config["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(config["clusterCIDR"], "10.244.0.0/16,fd00:10:244::/56");
}

#[test]
fn without_a_configuration_the_chart_mounts_none() {
    let Some(rendered) = render(&["--set=kubeProxyConfig.configMap=", "--set=rbac.create=true"]) else {
        return;
    };
    let shipped = rendered.unwrap();
    expect_consistent(&shipped);
    assert!(shipped.config.is_none());
    let arguments = shipped.container().unwrap().args.clone().unwrap();
    assert_eq!(arguments, ["run", "--hostname-override=$(NODE_NAME)"]);
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    for (value, named) in [
        ("--set=apiserver=https://192.0.2.1", "apiserver"),
        ("--set=apiServers={192.0.2.1:6443}", "apiServers"),
        ("--set=image.digest=latest", "digest"),
        ("--set=healthzPort=0", "healthzPort"),
        ("--set=extraArgs={socket-lb}", "extraArgs"),
        ("--set=updateStrategy.rollingUpdate.maxUnavailable=0", "maxUnavailable"),
        ("--set=securityContext.privileged=true", "securityContext"),
        ("--set=kubeProxyConfig.inline.kind=Config", "kind"),
    ] {
        let Some(rendered) = render(&[value]) else { return };
        let error = rendered.unwrap_err();
        assert!(error.contains(named), "{value}: {error}");
    }
}

/// The words of a text that look like names of metrics, without what histograms append.
fn metrics(text: &str) -> BTreeSet<&str> {
    const PREFIXES: [&str; 4] = ["sluice_", "kubeproxy_", "process_", "rest_client_"];
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
    names
        .map(|name| {
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
        })
        .collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let Ok(documentation) = read(shipped::directory().join("../docs/metrics.md")) else {
        unsupported(&anyhow::anyhow!("docs/metrics.md is not there yet"));
        return;
    };
    let known = metrics(&documentation);
    for file in ["grafana/sluice.json", "prometheus/alerts.yaml", "prometheus/alerts.test.yaml"] {
        let text = read(shipped::directory().join(file)).unwrap();
        let asked = metrics(&text);
        assert!(asked.len() > 5, "{file} asks for {asked:?} only");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} asks for what nobody counts: {unknown:?}");
    }
}
