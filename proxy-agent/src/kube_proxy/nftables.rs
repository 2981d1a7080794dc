//! Tables, chains and rules of nf_tables: what nftables makes, and what iptables makes unless it is the legacy one.

use std::{fmt, io};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Body, Netlink, attributes, inside, name};

/// The family of a table (`NFPROTO_`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NetfilterFamily(u8);

impl NetfilterFamily {
    /// IPv4.
    pub(crate) const IP: Self = Self(2);
    /// Both.
    pub(crate) const INET: Self = Self(1);
    /// IPv6.
    pub(crate) const IP6: Self = Self(10);
}

impl fmt::Display for NetfilterFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unknown",
        })
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    /// Its family.
    pub(crate) family: NetfilterFamily,
    /// Its name.
    pub(crate) name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its table.
    pub(crate) table: Table,
    /// Its name.
    pub(crate) name: String,
    /// Whether packets come to it by themselves, not only from other chains.
    pub(crate) is_base: bool,
}

/// A rule of iptables' tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<Id> {
    /// The chain that it is in.
    pub(super) chain: String,
    /// The chain that it leads to.
    pub(super) target: Option<String>,
    /// What it is deleted by.
    pub(super) id: Id,
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its table.
    pub(super) table: Table,
    /// Itself.
    pub(super) rule: Rule<u64>,
    /// Whether it translates addresses.
    pub(super) translates: bool,
}

/// Something to be deleted from a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// The table, with everything in it.
    Table,
    /// A rule of a chain, by its handle.
    Rule(String, u64),
    /// All rules of a chain.
    Rules(String),
    /// A chain that has no rules.
    Chain(String),
}

impl fmt::Display for Deletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("the table itself"),
            Self::Rule(chain, handle) => write!(f, "rule {handle} of chain {chain}"),
            Self::Rules(chain) => write!(f, "the rules of chain {chain}"),
            Self::Chain(chain) => write!(f, "chain {chain}"),
        }
    }
}

/// The subsystem that messages of nf_tables are for (include/uapi/linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Messages, of that subsystem (include/uapi/linux/netfilter/nf_tables.h).
const NEW_TABLE: u16 = message(0);
const DELETE_TABLE: u16 = message(2);
const NEW_CHAIN: u16 = message(3);
const GET_CHAIN: u16 = message(4);
const DELETE_CHAIN: u16 = message(5);
const NEW_RULE: u16 = message(6);
const GET_RULE: u16 = message(7);
const DELETE_RULE: u16 = message(8);
/// Attributes.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
/// Bytes of `nfgenmsg`: family, version, resource.
pub(super) const HEAD: usize = 4;

const fn message(number: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, number])
}

/// A request about a family.
pub(super) fn request(kind: u16, family: NetfilterFamily) -> Body {
    Body::new(kind, &[family.0, 0, 0, 0])
}

/// The family that a message is about.
pub(super) fn family(body: &Body) -> Option<NetfilterFamily> {
    body.head::<HEAD>().map(|[family, ..]| NetfilterFamily(*family))
}

/// A request for a table, if there is none.
pub(super) fn new_table(table: &Table) -> Body {
    request(NEW_TABLE, table.family).flagged(NLM_F_CREATE).with_name(TABLE_NAME, &table.name)
}

/// A request for a chain.
pub(super) fn new_chain(table: &Table, name: &str) -> Body {
    request(NEW_CHAIN, table.family)
        .flagged(NLM_F_CREATE)
        .with_name(CHAIN_TABLE, &table.name)
        .with_name(CHAIN_NAME, name)
}

/// A request for a rule, yet without expressions.
pub(super) fn new_rule(table: &Table, chain: &str) -> Body {
    request(NEW_RULE, table.family)
        .flagged(NLM_F_CREATE | NLM_F_APPEND)
        .with_name(RULE_TABLE, &table.name)
        .with_name(RULE_CHAIN, chain)
}

/// A way to talk to the kernel about them.
pub(super) struct NfTables(Netlink);

impl NfTables {
    /// Opens one.
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_NETFILTER).map(Self)
    }

    /// All chains of all tables.
    pub(super) fn chains(&mut self) -> io::Result<Vec<Chain>> {
        self.0.list(&request(GET_CHAIN, NetfilterFamily(0)), chain)
    }

    /// All rules of all tables.
    pub(super) fn rules(&mut self) -> io::Result<Vec<Listed>> {
        self.0.list(&request(GET_RULE, NetfilterFamily(0)), rule)
    }

    /// Deletes all of these, in this order, and does what is requested besides; or nothing. An error is about one of them, or
    /// about all.
    pub(super) fn change(
        &mut self,
        table: &Table,
        deletions: &[Deletion],
        besides: Vec<Body>,
    ) -> Result<(), (Option<usize>, io::Error)> {
        let batch = |kind| Body::new(kind, &[0, 0, 0, SUBSYSTEM]);
        let deletions = deletions.iter().map(|deletion| deletion.request(table));
        self.0.transact((batch(BATCH_BEGIN), batch(BATCH_END)), deletions.chain(besides).collect())
    }
}

impl Deletion {
    fn request(&self, table: &Table) -> Body {
        let rules = |chain: &str| {
            request(DELETE_RULE, table.family).with_name(RULE_TABLE, &table.name).with_name(RULE_CHAIN, chain)
        };
        match self {
            Self::Table => request(DELETE_TABLE, table.family).with_name(TABLE_NAME, &table.name),
            Self::Rule(chain, handle) => rules(chain).with(RULE_HANDLE, &handle.to_be_bytes()),
            Self::Rules(chain) => rules(chain),
            Self::Chain(chain) => request(DELETE_CHAIN, table.family)
                .with_name(CHAIN_TABLE, &table.name)
                .with_name(CHAIN_NAME, chain),
        }
    }
}

/// The chain that a message describes.
fn chain(body: &Body) -> Option<Chain> {
    let (mut table, mut own, mut is_base) = (None, None, false);
    for (kind, value) in body.attributes(HEAD) {
        match kind {
            CHAIN_TABLE => table = Some(name(value)),
            CHAIN_NAME => own = Some(name(value)),
            CHAIN_HOOK => is_base = true,
            _ => {}
        }
    }
    Some(Chain { table: Table { family: family(body)?, name: table? }, name: own?, is_base })
}

/// The rule that a message describes.
fn rule(body: &Body) -> Option<Listed> {
    let (mut table, mut chain, mut handle, mut target, mut translates) = (None, None, None, None, false);
    for (kind, value) in body.attributes(HEAD) {
        match kind {
            RULE_TABLE => table = Some(name(value)),
            RULE_CHAIN => chain = Some(name(value)),
            RULE_HANDLE => handle = value.try_into().ok().map(u64::from_be_bytes),
            RULE_EXPRESSIONS => {
                target = attributes(value).find_map(|(_, expression)| leads_to(expression));
                translates = attributes(value).any(|(_, expression)| is_translation(expression));
            }
            _ => {}
        }
    }
    let table = Table { family: family(body)?, name: table? };
    Some(Listed { table, rule: Rule { chain: chain?, target, id: handle? }, translates })
}

/// The chain that an expression of a rule leads to.
fn leads_to(expression: &[u8]) -> Option<String> {
    let data = inside(expression, EXPRESSION_DATA)?;
    let verdict = inside(inside(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
    inside(verdict, VERDICT_CHAIN).map(name)
}

/// iptables' targets that translate addresses.
pub(super) const TRANSLATIONS: [&str; 5] = ["MASQUERADE", "DNAT", "SNAT", "REDIRECT", "NETMAP"];

/// Whether an expression of a rule translates addresses, by nftables' means or by a target of iptables.
fn is_translation(expression: &[u8]) -> bool {
    const TARGET_NAME: u16 = 1;
    match inside(expression, EXPRESSION_NAME).map(name).as_deref() {
        Some("nat" | "masq" | "redir") => true,
        Some("target") => {
            let target = inside(expression, EXPRESSION_DATA).and_then(|data| inside(data, TARGET_NAME));
            target.map(name).is_some_and(|target| TRANSLATIONS.contains(&target.as_str()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_read_from_the_kernels_messages() {
        let body = request(GET_CHAIN, NetfilterFamily::IP)
            .with_name(CHAIN_TABLE, "nat")
            .with_name(CHAIN_NAME, "KUBE-SERVICES");
        let services = chain(&body).unwrap();
        assert_eq!(services.table.to_string(), "ip nat");
        assert!(services.name == "KUBE-SERVICES" && !services.is_base);
        let body = request(GET_CHAIN, NetfilterFamily::IP6)
            .with_name(CHAIN_TABLE, "kube-proxy")
            .with_name(CHAIN_NAME, "services")
            .with(CHAIN_HOOK, &[]);
        let services = chain(&body).unwrap();
        assert!(services.table.to_string() == "ip6 kube-proxy" && services.is_base);
        assert_eq!(chain(&request(GET_CHAIN, NetfilterFamily::IP)), None);
    }

    fn expression(name: &str, data: &Body) -> Body {
        Body::new(0, &[]).with_name(EXPRESSION_NAME, name).with(EXPRESSION_DATA, data.bytes())
    }

    #[test]
    fn rules_say_which_chain_they_lead_to_and_whether_they_translate() {
        let table = Table { family: NetfilterFamily::IP, name: "nat".to_owned() };
        let verdict =
            Body::new(0, &[]).with(1, &(-3i32).to_be_bytes()).with_name(VERDICT_CHAIN, "KUBE-SVC-A");
        let data = Body::new(0, &[]).with(DATA_VERDICT, verdict.bytes());
        let jump =
            expression("immediate", &Body::new(0, &[]).with(1, &[0; 4]).with(IMMEDIATE_DATA, data.bytes()));
        let counter = expression("counter", &Body::new(0, &[]));
        let dnat = expression("target", &Body::new(0, &[]).with_name(1, "DNAT"));
        let mark = expression("target", &Body::new(0, &[]).with_name(1, "MARK"));
        let masquerade = Body::new(0, &[]).with_name(EXPRESSION_NAME, "masq");
        let read = |expressions: &[&Body]| {
            let add = |list: Body, expression: &&Body| list.with(LIST_ELEMENT, expression.bytes());
            let expressions = expressions.iter().fold(Body::new(0, &[]), add);
            let body = request(GET_RULE, NetfilterFamily::IP)
                .with_name(RULE_TABLE, "nat")
                .with_name(RULE_CHAIN, "KUBE-SERVICES")
                .with(RULE_HANDLE, &9u64.to_be_bytes())
                .with(RULE_EXPRESSIONS, expressions.bytes());
            let listed = rule(&body).unwrap();
            assert_eq!(
                (&listed.table, listed.rule.id, listed.rule.chain.as_str()),
                (&table, 9, "KUBE-SERVICES")
            );
            (listed.rule.target, listed.translates)
        };
        let service = Some("KUBE-SVC-A".to_owned());
        assert_eq!(read(&[&counter, &jump]), (service, false));
        assert_eq!(read(&[&counter, &dnat]), (None, true));
        assert_eq!(read(&[&masquerade]), (None, true));
        assert_eq!(read(&[&counter, &mark]), (None, false));
    }
}
