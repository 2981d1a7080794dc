//! What the source says to the operator.

use std::{cell::RefCell, io, sync::Once, time::Duration};

use tokio::{sync::watch, time};
use tracing_subscriber::EnvFilter;

/// The lines at `info` and above of this test, which runs in one thread, for as long as this lives.
pub(crate) struct Log {
    lines: watch::Receiver<Vec<String>>,
}

impl Log {
    pub(crate) fn capture() -> Self {
        install();
        let (sender, lines) = watch::channel(Vec::new());
        LINES.set(Some(sender));
        Self { lines }
    }

    /// The lines that contain the text.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        self.lines.borrow().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Waits until so many lines contain the text.
    pub(crate) async fn until(&self, count: usize, text: &str) {
        let reached = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).count() >= count;
        let mut lines = self.lines.clone();
        let waited = time::timeout(Duration::from_secs(60), lines.wait_for(reached)).await;
        assert!(waited.is_ok(), "waited in vain for {count} lines with {text:?}: {:#?}", self.lines.borrow());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        LINES.set(None);
    }
}

/// For all tests, and before the source runs in any: subscribers that come and go per thread lose lines when another
/// thread is the first to reach a place that logs.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("proxy_agent=info"))
            .with_ansi(false)
            .without_time()
            .with_writer(|| Line)
            .init();
    });
}

thread_local! {
    static LINES: RefCell<Option<watch::Sender<Vec<String>>>> = const { RefCell::new(None) };
}

/// Each line is written at once.
struct Line;

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes).trim().to_owned();
        LINES.with_borrow(|sender| {
            if let Some(sender) = sender {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
