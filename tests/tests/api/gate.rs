//! Several addresses of one API server, each of which can fail by itself.

use std::net::SocketAddr;

use hyper::Uri;
use sluice_tests::apiserver::ApiServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// An address that leads to the server, or not.
pub(crate) struct Gate {
    address: SocketAddr,
    server: SocketAddr,
    /// Ends with all its connections.
    serving: Option<JoinHandle<()>>,
}

/// What becomes of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// They lead to the server.
    Through,
    /// They are accepted, and nothing comes of it.
    Nowhere,
    /// Every request is answered with HTTP status 503.
    Unavailable,
}

impl Gate {
    pub(crate) async fn open(server: &ApiServer, way: Way) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut gate = Self { address, server: server.address(), serving: None };
        gate.serve(listener, way);
        gate
    }

    pub(crate) fn uri(&self) -> Uri {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// Breaks all connections, and refuses others.
    pub(crate) async fn shut(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            serving.await.ok();
        }
    }

    pub(crate) async fn reopen(&mut self, way: Way) {
        self.shut().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener, way);
    }

    fn serve(&mut self, listener: TcpListener, way: Way) {
        let server = self.server;
        self.serving = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(lead(stream, server, way));
            }
        }));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

/// How it ends is up to both ends.
async fn lead(mut client: TcpStream, server: SocketAddr, way: Way) {
    match way {
        Way::Through => {
            if let Ok(mut server) = TcpStream::connect(server).await {
                copy_bidirectional(&mut client, &mut server).await.ok();
            }
        }
        Way::Nowhere => std::future::pending().await,
        Way::Unavailable => {
            let mut request = [0; 4096];
            while client.read(&mut request).await.is_ok_and(|count| count > 0) {
                let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown";
                client.write_all(answer.as_bytes()).await.ok();
            }
        }
    }
}
