//! Log lines from the kernel programs, in builds whose object has any (`cargo xtask build --datapath-log`).

use aya_log::EbpfLogger;
use log::Log;
use tokio::io::unix::AsyncFd;

/// Hands what the programs log to this process's log, until the process ends.
pub async fn forward(logger: EbpfLogger<&'static dyn Log>) {
    #[expect(
        deprecated,
        reason = "the safe constructor; its successor is unsafe, and a ring buffer's fd is its own"
    )]
    let mut logger = match AsyncFd::new(logger) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "cannot read the datapath's log");
            return;
        }
    };
    loop {
        match logger.readable_mut().await {
            Ok(mut ready) => {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            Err(error) => {
                tracing::warn!(%error, "the datapath's log ended");
                return;
            }
        }
    }
}
