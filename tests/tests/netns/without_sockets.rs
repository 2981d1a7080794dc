//! Packets do without sockets: the broad tests once more, where no program is at any socket.

use sluice_tests::harness::again_telling;

use crate::{errors, external, fragments, nodeport, policy, reach, refuse, sctp, source, spread, udp};

/// Pods and clients outside, by every kind of address; the host is the one that packets do not serve.
#[test]
fn packets_serve_everybody_but_the_host_without_sockets() {
    again_telling(
        &["--socket-lb=off"],
        &[
            reach::pod_reaches_a_backend_on_the_other_node,
            reach::client_outside_reaches_a_backend_on_the_node_it_asks,
            reach::pods_on_different_nodes_reach_each_other_through_two_services,
            nodeport::outside_reaches_a_backend_through_every_node,
            nodeport::a_pod_reaches_backends_through_its_own_node_as_itself,
            nodeport::a_pod_reaches_backends_through_the_other_node,
            external::an_external_ip_that_no_node_has_is_served_on_every_node,
            source::a_backend_reaches_all_backends_of_its_service,
            source::one_client_port_uses_two_services_in_front_of_one_backend,
            policy::internal_local_serves_pods_of_the_endpoints_node_only,
            policy::external_local_treats_pods_like_clients_outside_if_it_cannot_tell_them,
            spread::flows_from_a_pod_spread_evenly_over_local_and_remote_backends,
            refuse::a_service_without_endpoints_refuses_at_once,
            udp::senders_follow_when_their_backend_is_replaced,
            sctp::associations_go_through_cluster_ips_and_node_ports,
            fragments::large_datagrams_come_and_go_whole,
            errors::a_client_learns_that_the_backends_port_is_closed,
        ],
    );
}
