//! The servers that the same scenarios run against, and objects to put there.

use k8s_openapi::api::{
    core::v1::{Node, Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_tests::apiserver::{ApiServer, Kind};

use super::{follow::Truth, real::RealServer};

/// A server that scenarios without faults can run against.
pub(crate) enum Cluster {
    InProcess(ApiServer),
    Real(RealServer),
}

impl Cluster {
    pub(crate) fn kubeconfig(&self) -> String {
        match self {
            Self::InProcess(server) => server.kubeconfig(),
            Self::Real(server) => server.kubeconfig(),
        }
    }

    pub(crate) async fn apply<K: Kind>(&self, object: &K) {
        match self {
            Self::InProcess(server) => {
                server.apply(object);
            }
            Self::Real(server) => server.apply(object).await,
        }
    }

    pub(crate) async fn delete<K: Kind>(&self, namespace: &str, name: &str) {
        match self {
            Self::InProcess(server) => {
                server.delete::<K>(namespace, name);
            }
            Self::Real(server) => server.delete::<K>(namespace, name).await,
        }
    }

    /// What the source should have told in the end.
    pub(crate) async fn truth(&self) -> Truth {
        match self {
            Self::InProcess(server) => truth(server),
            Self::Real(server) => {
                Truth::new(server.objects().await, server.objects().await, server.objects().await)
            }
        }
    }

    /// Ends the server without a goodbye, and starts it again.
    pub(crate) async fn crash(&mut self) {
        match self {
            Self::InProcess(server) => {
                server.go_down().await;
                server.come_up().await.unwrap();
            }
            Self::Real(server) => server.crash().await,
        }
    }
}

pub(crate) fn truth(server: &ApiServer) -> Truth {
    Truth::new(server.objects(), server.objects(), server.objects())
}

/// A Service; its port is what changes.
pub(crate) fn service(index: u16, port: i32) -> Service {
    let [high, low] = index.to_be_bytes();
    let address = format!("10.0.{}.{low}", high + 1);
    Service {
        metadata: meta(&format!("service-{index:05}")),
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.clone()),
            cluster_ips: Some(vec![address]),
            ports: Some(vec![ServicePort {
                port,
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A Service without an address.
pub(crate) fn headless(index: u16) -> Service {
    let mut service = service(index, 80);
    if let Some(spec) = &mut service.spec {
        spec.cluster_ip = Some("None".to_owned());
        spec.cluster_ips = Some(vec!["None".to_owned()]);
    }
    service.metadata.name = Some(format!("headless-{index:05}"));
    service
}

/// A slice with one endpoint; its port is what changes.
pub(crate) fn slice(index: u16, port: i32) -> EndpointSlice {
    let [high, low] = index.to_be_bytes();
    let endpoint = Endpoint { addresses: vec![format!("10.1.{high}.{low}")], ..Endpoint::default() };
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(vec![endpoint]),
        metadata: meta(&format!("slice-{index:05}")),
        ports: Some(vec![EndpointPort {
            name: Some(String::new()),
            port: Some(port),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

pub(crate) fn node(name: &str) -> Node {
    Node { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, ..Node::default() }
}

/// The object with a label, which has the value `x`.
pub(crate) fn labelled<K: Kind>(mut object: K, label: &str) -> K {
    object.metadata_mut().labels.get_or_insert_default().insert(label.to_owned(), "x".to_owned());
    object
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

pub(crate) const NAMESPACE: &str = "default";
