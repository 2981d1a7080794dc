//! From a listening socket to answers.

use std::{convert::Infallible, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tracing::debug;

/// What is sent back.
pub(super) type Answer = Response<Full<Bytes>>;

/// Connections to a port at a time. Whoever may reach it could otherwise take all file descriptors of the agent.
const CONNECTIONS: usize = 128;
/// How long a client may take to ask, and a connection may be idle.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait if no connection can be accepted, because of a shortage that is not this socket's.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Somebody who answers.
pub(super) trait Service: Clone + Send + Sync + 'static {
    /// The answer; bodies of requests are not read.
    fn answer(&self, request: Request<()>) -> impl Future<Output = Answer> + Send;
}

/// A server, until it is closed or dropped.
#[derive(Debug)]
pub(super) struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Serves at a socket.
    pub(super) fn start(listener: TcpListener, service: impl Service) -> Self {
        Self { task: tokio::spawn(accept(listener, service)) }
    }

    /// Serves as soon as there is a socket.
    pub(super) fn start_later(
        listener: impl Future<Output = TcpListener> + Send + 'static,
        service: impl Service,
    ) -> Self {
        Self { task: tokio::spawn(async move { accept(listener.await, service).await }) }
    }

    /// Closes the socket and all its connections, and returns when that has happened.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // It ends because it was told to.
        drop((&mut self.task).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connections end with this.
async fn accept(listener: TcpListener, service: impl Service) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, service.clone()));
                }
                Err(error) => {
                    debug!(%error, "cannot accept a connection");
                    sleep(SHORTAGE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, service: impl Service) {
    let respond = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(service.answer(request.map(drop)).await)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), respond).await {
        debug!(%error, "a connection ended");
    }
}

/// An answer of this type, which browsers are not to second-guess.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// `application/json`.
pub(super) const JSON: &str = "application/json";
/// Plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The answer to whoever asks for something that is not there, word for word as Go gives it.
pub(super) fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}
