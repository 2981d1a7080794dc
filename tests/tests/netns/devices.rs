//! Devices come and go.

use anyhow::ensure;
use sluice_tests::{
    harness::Setup,
    service::Service,
    topology::Family,
    traffic::{Connection, Source},
    wait::wait_until,
};

use crate::{Backend, expect::expect_all_reach};

#[test]
fn a_pod_made_after_the_agent_started_is_served() {
    Setup::new(2).alone().run(|cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let late = cluster.nodes[0].add_pod("late")?;
        let far = cluster.nodes[1].add_pod("late-and-far")?;
        agents.agents.iter().try_for_each(|agent| agent.wait_until_attached())?;
        expect_all_reach(&late.machine, &service, "near")?;
        expect_all_reach(&far.machine, &service, "near")
    });
}

#[test]
fn a_deleted_pod_leaves_no_pin_behind() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        let stays = node.add_pod("stays")?;
        agents.serve(&service)?;
        let before = agent.pins()?;
        let gone = node.add_pod("gone")?;
        agent.wait_until_attached()?;
        ensure!(agent.pins()?.len() > before.len(), "there is nothing to leave behind");
        expect_all_reach(&gone.machine, &service, "near")?;
        node.delete_pod(gone)?;
        agent.wait_until_attached()?;
        wait_until("the pins are as before", || Ok((agent.pins()? == before).then_some(())))?;
        expect_all_reach(&stays.machine, &service, "near")
    });
}

#[test]
fn a_device_replaced_while_the_agent_was_down_is_attached_and_leaves_no_pin_behind() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        let gone = node.add_pod("gone")?;
        agents.serve(&service)?;
        let agent = &mut agents.agents[0];
        let before = agent.pins()?.len();
        agent.kill()?;
        node.delete_pod(gone)?;
        let late = node.add_pod("late")?;
        agent.resume()?;
        agent.wait_until_synced()?;
        agent.wait_until_attached()?;
        wait_until("there are as many pins as before", || Ok((agent.pins()?.len() == before).then_some(())))?;
        expect_all_reach(&late.machine, &service, "near")
    });
}

#[test]
fn a_removed_backend_may_take_its_device_with_it() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let gone = Backend::on(node, "gone")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&gone.pod);
        agents.serve(&service)?;
        let service = service.without("gone");
        agents.serve(&service)?;
        drop(gone.server);
        node.delete_pod(gone.pod)?;
        for family in Family::ALL {
            for _ in 0..30 {
                Connection::open(&client.machine.namespace, service.frontend(family), Source::AnyPort)?;
            }
        }
        ensure!(near.server.connections() == 60);
        Ok(())
    });
}
