//! What the objects say beside what the kernel has: the model's own reasons for each endpoint.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures::{Stream, StreamExt as _};
use proxy_common::frontend::FrontendKey;
use proxy_model::{
    Change, EndpointVerdict, Event, Explanation as Reasons, Model, Options, Restored, ServicePortName,
};

use super::{Candidate, Explanation, ObjectArgs, ObjectVerdict, Target, decide::end};
use crate::{config::node_name, metrics::ApiMetrics, show::ShowError, watch};

/// How long the objects may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the objects say nothing.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The directory cannot be read.
    #[error("--manifests")]
    Manifests(#[from] watch::ManifestError),
    /// The API server cannot be asked.
    #[error("--kubeconfig")]
    Client(#[from] watch::ClientError),
    /// No runtime to ask in.
    #[error("cannot wait for the objects")]
    Runtime(#[source] std::io::Error),
    /// They did not come.
    #[error("the Services, EndpointSlices and Node have not been listed within {PATIENCE:?}")]
    Timeout,
    /// It has no name.
    #[error("the node has no name: set --hostname-override")]
    NoName,
}

/// Adds what they say.
pub(super) fn consult(
    args: &ObjectArgs,
    target: &Target,
    explanation: &mut Explanation,
) -> Result<(), ShowError> {
    if args.manifests.is_none() && args.kubeconfig.is_none() {
        return Ok(());
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let node = node_name(args.hostname_override.as_deref().unwrap_or_default(), &hostname.to_string_lossy());
    let model = list(args, &node.ok_or(ObjectsError::NoName)?)?;
    tell(&model, target, explanation);
    Ok(())
}

/// Lists all objects once.
fn list(args: &ObjectArgs, node: &str) -> Result<Model, ObjectsError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ObjectsError::Runtime)?;
    runtime.block_on(async {
        let changes = match &args.manifests {
            Some(dir) => watch::manifests(dir)?.boxed(),
            None => {
                let api = watch::ApiOptions { kubeconfig: args.kubeconfig.clone(), ..Default::default() };
                let metrics = ApiMetrics::default();
                let client = watch::client(&api, &metrics).await?;
                watch::kubernetes(client, node, &metrics).boxed()
            }
        };
        let model = Model::new(Options::on_node(node), Restored::default());
        let listed = tokio::time::timeout(PATIENCE, take_lists(model, changes)).await;
        listed.map_err(|_| ObjectsError::Timeout)
    })
}

/// Takes in changes until there has been a list of every kind.
async fn take_lists(mut model: Model, mut changes: impl Stream<Item = Change> + Unpin) -> Model {
    let mut listed = [false; 3];
    while listed.contains(&false)
        && let Some(change) = changes.next().await
    {
        let (kind, is_list) = match &change {
            Change::Service(event) => (0, matches!(event, Event::Replace(_))),
            Change::EndpointSlice(event) => (1, matches!(event, Event::Replace(_))),
            Change::Node(event) => (2, matches!(event, Event::Replace(_))),
            // They have no part in what a Service's endpoints are.
            Change::Pod(_) | Change::PodCgroup(_) => continue,
        };
        listed[kind] |= is_list;
        // What is wrong stays known to the model.
        drop(model.apply(change));
    }
    drop(model.plan(Duration::ZERO));
    model
}

/// Adds what a model says.
pub(super) fn tell(model: &Model, target: &Target, explanation: &mut Explanation) {
    let to = end(target.end);
    let keys = [FrontendKey::new(to, target.protocol), FrontendKey::node_port(to, target.protocol)];
    let holder = keys.iter().find_map(|key| model.holder(key).cloned());
    let programmed =
        explanation.frontend.as_ref().and_then(|found| found.service.parse::<ServicePortName>().ok());
    if let (Some(holder), None) = (&holder, &programmed) {
        let text = format!("by the objects it is {holder}'s, but the kernel has no such frontend");
        explanation.problems.push(text);
    }
    let Some(port) = programmed.or(holder) else {
        return;
    };
    let name = port.service.to_string();
    let about = model.problems().map(|problem| problem.to_string()).filter(|text| text.contains(&name));
    explanation.problems.extend(about);
    let Some(Reasons { endpoints, without_port }) = model.explain(&port) else {
        explanation.problems.push(format!("the objects have no service port {port}, but the kernel does"));
        return;
    };
    for ip in without_port {
        let text = format!("endpoint {ip}: its slice has no port {:?} of that protocol", port.port);
        explanation.problems.push(text);
    }
    let local = explanation.set.is_some_and(|set| set.name == "local");
    let mut said: BTreeMap<SocketAddr, EndpointVerdict> =
        endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint)).collect();
    for candidate in &mut explanation.backends {
        candidate.objects = said.remove(&candidate.address).map(|endpoint| verdict(&endpoint, local));
    }
    let absent = said.into_values().map(|endpoint| Candidate {
        address: endpoint.address,
        id: None,
        state: None,
        local: endpoint.is_local,
        in_set: false,
        possible: false,
        why_not: Some("the kernel has no such backend".to_owned()),
        masqueraded: None,
        masqueraded_why: None,
        seen_as: None,
        objects: Some(verdict(&endpoint, local)),
    });
    explanation.backends.extend(absent);
    for candidate in &explanation.backends {
        let wanted = candidate.objects.as_ref().is_some_and(|objects| objects.in_set);
        if wanted != candidate.in_set {
            let (kernel, objects) = if wanted { ("not in", "in") } else { ("in", "not in") };
            explanation.problems.push(format!(
                "backend {}: {kernel} the set of the kernel, {objects} that of the objects; the agent is behind, or has \
                 another node name or other flags",
                candidate.address
            ));
        }
    }
}

fn verdict(endpoint: &EndpointVerdict, local: bool) -> ObjectVerdict {
    let EndpointVerdict { ready, serving, terminating, cluster_set, local_set, .. } = *endpoint;
    let verdict = if local { local_set } else { cluster_set };
    ObjectVerdict {
        ready,
        serving,
        terminating,
        in_set: verdict.is_ok(),
        why_not: verdict.err().map(|reason| reason.to_string()),
    }
}
