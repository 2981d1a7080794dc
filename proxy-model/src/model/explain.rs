//! Answers for people.

use proxy_common::frontend::FrontendKey;

use super::Model;
use crate::{name::ServicePortName, reasons::Explanation, sets};

impl Model {
    /// Why each endpoint of a service port is in or out of each set; `None` if the objects have no such service port.
    #[must_use]
    pub fn explain(&self, port: &ServicePortName) -> Option<Explanation> {
        let service = self.state.service(&port.service)?;
        let wanted = service.ports.iter().find(|wanted| wanted.name == *port)?;
        let frontends = wanted.frontends(self.options.external_ips);
        let slices = || self.state.slices(&port.service);
        Some(Explanation {
            endpoints: sets::explain(wanted, &frontends, slices(), self.state.node(), &self.options),
            without_port: sets::without_port(port, slices()),
        })
    }

    /// The service port that has a frontend, by the objects, once they have been planned.
    #[must_use]
    pub fn holder(&self, frontend: &FrontendKey) -> Option<&ServicePortName> {
        self.claims.holder(frontend)
    }
}
