//! Every table of the datapath object.

use proxy_common::tables::{
    AddressFilter, Addresses, Affinities, Backends, Delivered, Deliveries, DeliveryDevices, Devices, Drops,
    EventLease, Events, FlowCache, FlowEpochs, Flows, Fragments, Frontends, LostEvents, Misfits, Passages,
    Pods, ServiceDrops, ServiceNames, ServiceTraffic, Settings, Shortcuts, Slots, Sockets, SourceRanges,
    Table, XdpDevices,
};

/// Something to be done with every table.
pub(super) trait Visitor {
    /// Why it cannot be done.
    type Error;

    /// Does it with one.
    fn visit<T: Table>(&mut self) -> Result<(), Self::Error>;
}

/// Visits every table, up to the first error. The only list of them in the agent: what is done with all is done
/// through it, and loading fails if the object has another map that packets share.
pub(super) fn visit<V: Visitor>(visitor: &mut V) -> Result<(), V::Error> {
    visitor.visit::<Frontends>()?;
    visitor.visit::<Addresses>()?;
    visitor.visit::<SourceRanges>()?;
    visitor.visit::<Slots>()?;
    visitor.visit::<Backends>()?;
    visitor.visit::<Flows>()?;
    visitor.visit::<FlowCache>()?;
    visitor.visit::<FlowEpochs>()?;
    visitor.visit::<Fragments>()?;
    visitor.visit::<Affinities>()?;
    visitor.visit::<Sockets>()?;
    visitor.visit::<Pods>()?;
    visitor.visit::<AddressFilter>()?;
    visitor.visit::<Devices>()?;
    visitor.visit::<Settings>()?;
    visitor.visit::<ServiceNames>()?;
    visitor.visit::<ServiceTraffic>()?;
    visitor.visit::<ServiceDrops>()?;
    visitor.visit::<Misfits>()?;
    visitor.visit::<Drops>()?;
    visitor.visit::<EventLease>()?;
    visitor.visit::<Events>()?;
    visitor.visit::<LostEvents>()?;
    visitor.visit::<XdpDevices>()?;
    visitor.visit::<Shortcuts>()?;
    visitor.visit::<Passages>()?;
    visitor.visit::<DeliveryDevices>()?;
    visitor.visit::<Deliveries>()?;
    visitor.visit::<Delivered>()
}
