//! `sluice explain`: what becomes of a new connection from one client to one destination, and why.
//!
//! The verdict is the kernel's: the decision's own code, on a copy of the kernel's tables, tried with every throw of the
//! dice. What it writes is thrown away, so nothing that is asked changes anything.

mod answer;
mod ask;
mod compose;
mod decide;
mod objects;
mod own;
mod print;
mod read;
mod source;
#[cfg(test)]
mod tests;
mod view;

use std::path::PathBuf;

use clap::Args;
use proxy_common::addresses::AddressFlags;

pub use answer::{
    AffinityMapping, AttachedHook, Candidate, ChosenSet, Client, Explanation, MatchedFrontend, ObjectVerdict,
    Origin, Outcome, Path, SourceRanges, Verdict,
};
pub use ask::{ParseSourceError, ParseTargetError, Source, Target};
pub use objects::ObjectsError;
pub use source::SourceError;

use self::view::View;
use super::{
    ShowError,
    flows::{FlowFilter, Reader},
    names::Names,
};
use crate::cli::ShowArgs;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Who wants to talk: the address of a pod, a node or somebody outside, with a port to ask about one connection; or
    /// `host`, a process in this node's own network
    #[arg(long, value_name = "IP[:PORT]|host")]
    pub from: Source,
    /// Device that the client's packets enter this node by; found by the routes to the client if it is left out
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Pod that the client's process is in; which pods are served at their sockets is decided pod by pod. Without it, the
    /// client is taken for one of which nothing is known
    #[arg(long, value_name = "NS/NAME")]
    pub pod: Option<String>,
    /// To whom: a frontend's address and port; TCP, UDP or SCTP
    #[arg(value_name = "IP:PORT[/PROTOCOL]")]
    pub to: Target,
    /// Where the objects are.
    #[command(flatten)]
    pub objects: ObjectArgs,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Where the objects are: with them, each endpoint is told why it is in or out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Objects")]
pub struct ObjectArgs {
    /// Also tell what the Services and EndpointSlices of this directory's manifests say of each endpoint
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Also tell what those of the API server say that this file names
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node, instead of the host's name
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
}

/// Works it out.
pub(super) fn explain(args: &ExplainArgs) -> Result<Explanation, ShowError> {
    let pins = args.show.pins();
    let ip = match args.from {
        Source::Host => None,
        Source::Address(ip, _) => Some(ip),
    };
    let mut view = View::read(&pins, ip, &args.to)?;
    let both = AddressFlags::CLUSTER_IP.with(AddressFlags::NODE);
    view.listens = view.address(args.to.end.ip().into()).contains(both) && own::listens(&args.to);
    view.pod = args.pod.as_deref().map(|name| source::reason_of(name, &pins)).transpose()?;
    let all = crate::devices::list()?;
    let asker = source::find(args, &view, &all, &pins)?;
    view.read_service(&pins, &asker.client, &args.to)?;
    let mut explanation = compose::compose(&view, &args.to, &asker, &Names::read(&pins)?);
    source::tell_addresses(&view, &mut explanation.backends, &all)?;
    if let Some(ip) = asker.client.address {
        let filter = FlowFilter::between(ip, args.to.end, args.to.protocol);
        explanation.flows = Reader::open(&pins)?.rows(&filter).collect::<Result<_, _>>()?;
        explanation.flows.sort_unstable();
    }
    objects::consult(&args.objects, &args.to, &mut explanation)?;
    Ok(explanation)
}
