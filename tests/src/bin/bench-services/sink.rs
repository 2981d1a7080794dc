//! A pair of devices on the fabric that leads nowhere: what enters it ends.

use anyhow::Result;
use sluice_tests::netns::Namespace;

/// As long as this is held, the pair is there.
#[derive(Debug)]
pub(crate) struct Sink(Namespace);

impl Sink {
    /// Where frames enter.
    pub(crate) const ENTRANCE: &str = "sink";
    /// Where they are received.
    pub(crate) const END: &str = "sink-end";

    /// Makes it.
    pub(crate) fn new(fabric: &Namespace) -> Result<Self> {
        let (entrance, end) = (Self::ENTRANCE, Self::END);
        fabric.ip(&format!(
            "link add {entrance} type veth peer name {end}\nlink set {entrance} up\nlink set {end} up"
        ))?;
        Ok(Self(fabric.clone()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Whoever makes the next one hears of it if this fails.
        drop(self.0.ip(&format!("link del {}", Self::ENTRANCE)));
    }
}
