//! Endpoints come and go under traffic.

use anyhow::{Result, ensure};
use sluice_tests::{
    harness::with_agents,
    service::Service,
    topology::Family,
    traffic::{Chatter, Connection, Protocol, Source, Spread, UdpClient},
};

use crate::{Backend, expect::expect_all_reach};

#[test]
fn a_udp_sender_moves_with_the_next_datagram_when_its_backend_is_removed() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        for (gone, left) in [(&near, &far), (&far, &near)] {
            agents.serve(&service)?;
            for family in Family::ALL {
                agents.serve(&service)?;
                let vip = service.frontend(family);
                let sockets = UdpClient::bind_many(from, family, 40)?;
                let answers: Vec<_> =
                    sockets.iter().map(|socket| socket.ask(vip, 1)).collect::<Result<_>>()?;
                let on_gone = answers.iter().filter(|answer| answer.backend == gone.pod.name()).count();
                ensure!(on_gone > 0, "no sender started on {}", gone.pod.name());

                agents.serve(&service.clone().without(gone.pod.name()))?;
                let delivered = gone.server.datagrams();
                for (socket, number) in sockets.iter().cycle().take(200).zip(2..) {
                    let answer = socket.ask(vip, number)?;
                    ensure!(answer.backend == left.pod.name() && answer.from == vip, "{answer:?}");
                }
                let stale = gone.server.datagrams() - delivered;
                ensure!(stale == 0, "{stale} datagrams reached {} after its removal", gone.pod.name());
            }
        }
        Ok(())
    });
}

#[test]
fn an_established_connection_survives_the_removal_of_its_endpoint() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let mut talks = Vec::new();
        for family in Family::ALL {
            for _ in 0..8 {
                let connection = Connection::open(from, service.frontend(family), Source::AnyPort)?;
                talks.push(Chatter::start(connection)?);
            }
        }
        let on_far = |talk: &&Chatter| talk.backend == "far";
        ensure!(talks.iter().filter(on_far).count() > 0, "no connection went to the far backend");

        agents.serve(&service.clone().without("far"))?;
        talks.iter().try_for_each(|talk| talk.expect_more(20))?;
        for family in Family::ALL {
            let to = service.frontend(family);
            Spread::measure(from, to, Protocol::Tcp, 50, |_| {})?.expect_uniform_over(&["near"])?;
        }
        talks.iter().try_for_each(|talk| talk.expect_more(20))?;
        talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    });
}

#[test]
fn a_new_endpoint_gets_its_share() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let service = service.with(&far.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let to = service.frontend(family);
                Spread::measure(&client.machine.namespace, to, protocol, 300, |_| {})?
                    .expect_uniform_over(&["near", "far"])?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_deleted_service_is_no_longer_served_and_another_one_goes_on() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let deleted = Service::new("deleted", 1).with(&near.pod);
        let kept = Service::new("kept", 2).with(&near.pod);
        agents.serve(&deleted)?;
        agents.serve(&kept)?;
        expect_all_reach(&client.machine, &deleted, "near")?;

        agents.withdraw(&deleted)?;
        for family in Family::ALL {
            let to = deleted.frontend(family);
            let result = Connection::open(&client.machine.namespace, to, Source::AnyPort);
            ensure!(result.is_err(), "{to} still answers");
        }
        expect_all_reach(&client.machine, &kept, "near")
    });
}
