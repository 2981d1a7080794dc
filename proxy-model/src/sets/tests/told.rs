//! What people are told about it.

use super::*;

/// COND-03, SEL-02, SEL-04, TOPO-03.
#[test]
fn everybody_who_is_left_out_is_told_why() {
    use Exclusion::{MeantForOtherZones, NotReady, OnAnotherNode, Terminating};
    let slices = [slice(&[
        "10.0.0.1 local zone-a",
        "10.0.0.2 zone-b",
        "10.0.0.3 local unready zone-a",
        "10.0.0.4 local draining zone-a",
        "10.0.0.5 dead",
    ])];
    let port = external(TrafficPolicy::Cluster, TrafficPolicy::Local);
    let told = explain(&port, &port.frontends(true), slices.iter(), &node(), &Options::default());
    let verdicts: Vec<_> = told.iter().map(|told| (told.cluster_set, told.local_set)).collect();
    let expected = [
        (Ok(()), Ok(())),
        (Err(MeantForOtherZones), Err(OnAnotherNode)),
        (Err(NotReady), Err(NotReady)),
        (Err(Terminating), Err(Terminating)),
        (Err(NotReady), Err(NotReady)),
    ];
    assert_eq!(verdicts, expected);
    let port = internal(TrafficPolicy::Cluster);
    let told = explain(&port, &port.frontends(true), slices.iter(), &node(), &Options::default());
    assert!(told.iter().all(|told| told.local_set == Err(Exclusion::NobodyAsks)));
}

/// EPS-06.
#[test]
fn endpoints_of_other_ports_are_told_apart() {
    let mut other = slice(&["10.0.0.9"]);
    other.ports[0].name = "metrics".to_owned();
    let slices = [slice(&["10.0.0.1"]), other];
    let port = internal(TrafficPolicy::Cluster);
    assert_eq!(without_port(&port.name, slices.iter()), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}
