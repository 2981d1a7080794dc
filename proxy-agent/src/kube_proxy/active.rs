//! Whether a kube-proxy runs beside Sluice.

use std::{
    fmt, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// How a kube-proxy shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    /// As a process in this network namespace, of this number.
    Process(u32),
    /// It answers where kube-proxy says in which mode it is.
    Answers {
        /// Where.
        at: SocketAddr,
        /// The mode.
        mode: String,
    },
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(id) => write!(f, "kube-proxy runs on this node, as process {id}"),
            Self::Answers { at, mode } => {
                write!(f, "kube-proxy runs on this node: http://{at}/proxyMode answers {mode:?}")
            }
        }
    }
}

/// Where kube-proxy tells its mode, unless it is told otherwise.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// What it answers. Sluice answers there as well, something else.
const MODES: [&str; 4] = ["iptables", "ipvs", "nftables", "userspace"];

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often somebody who waits looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// The kube-proxy that runs in this network namespace, as far as can be seen from here: by its process, if those of the node
/// are visible and may be looked at, and by what it answers at its address for metrics.
#[must_use]
pub fn active(metrics: Option<SocketAddr>) -> Option<Active> {
    process().map(Active::Process).or_else(|| {
        let at = reachable(metrics?);
        let mode = ask(at).filter(|answer| MODES.contains(&answer.as_str()))?;
        Some(Active::Answers { at, mode })
    })
}

/// Waits until no kube-proxy runs, which may be about to end.
///
/// # Errors
///
/// The one that runs, if it has not ended in time.
pub async fn absence(metrics: Option<SocketAddr>, patience: Duration) -> Result<(), Active> {
    // It looks into files, and waits for an answer for a moment at most: nothing else is to be done meanwhile.
    absence_of(|| active(metrics), patience).await
}

async fn absence_of(mut look: impl FnMut() -> Option<Active>, patience: Duration) -> Result<(), Active> {
    let deadline = Instant::now() + patience;
    let mut told = false;
    while let Some(active) = look() {
        if Instant::now() >= deadline {
            return Err(active);
        }
        if !told {
            tracing::warn!("{active}; waiting up to {} s for it to end", patience.as_secs());
            told = true;
        }
        sleep(INTERVAL).await;
    }
    Ok(())
}

/// The number of a process of that name in the network namespace of this one.
fn process() -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let is_it = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end() == "kube-proxy"
            && is_there(&entry.path(), &own);
        is_it.then_some(id)
    })
}

/// Whether a process is in that network namespace. One that has ended is in none, and of one that may not be looked at
/// nobody knows: another cluster's nodes may be containers on this one.
fn is_there(process: &Path, namespace: &Path) -> bool {
    fs::read_link(process.join("ns/net")).is_ok_and(|its| its == namespace)
}

/// Where a process of this node reaches what listens there.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What is answered at `/proxyMode`, if it is short.
fn ask(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET /proxyMode HTTP/1.0\r\nHost: {at}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).ok()?;
    body(&answer).map(str::to_owned)
}

/// The body of an answer that says that all is well.
fn body(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1)? == "200").then(|| body.trim())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// Answers one question as kube-proxy would.
    fn answering(mode: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 512];
            let length = stream.read(&mut question).unwrap();
            assert!(question[..length].starts_with(b"GET /proxyMode "));
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{mode}").unwrap();
        });
        at
    }

    #[test]
    fn a_kube_proxy_is_told_from_sluice_by_its_mode() {
        let at = answering("iptables");
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port());
        let found = active(Some(everywhere)).unwrap();
        assert_eq!(found, Active::Answers { at, mode: "iptables".to_owned() });
        assert!(
            found.to_string().ends_with(&format!("http://{at}/proxyMode answers \"iptables\"")),
            "{found}"
        );
        assert_eq!(active(Some(answering("sluice"))), None);
        // Nobody listens there any more.
        assert_eq!(active(Some(at)), None);
        assert_eq!(active(None), None);
        assert_eq!(body("HTTP/1.0 404 Not Found\r\n\r\niptables"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_is_waited_for_and_one_that_stays_is_told() {
        let mut looks = 0;
        let ending = || {
            looks += 1;
            (looks < 4).then_some(Active::Process(7))
        };
        assert_eq!(absence_of(ending, Duration::from_secs(30)).await, Ok(()));
        assert_eq!(looks, 4);
        let begin = Instant::now();
        let stays = absence_of(|| Some(Active::Process(7)), Duration::from_secs(30)).await;
        assert_eq!(stays, Err(Active::Process(7)));
        assert_eq!(begin.elapsed(), Duration::from_secs(30));
    }
}
