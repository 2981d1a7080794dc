//! Connections, and from a request to what answers it.

use std::{convert::Infallible, sync::Arc};

use http_body_util::BodyExt as _;
use hyper::{
    Method, Response, StatusCode, body::Incoming, header::USER_AGENT, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use super::{
    Fault, Request, Shared, Verb, create, lock,
    respond::{self, Body, Refusal, Scope},
};

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        // What a watch tells must not wait for the acknowledgement of what it told before.
        stream.set_nodelay(true).ok();
        let connection = tokio::spawn(serve(stream, Arc::clone(&shared)));
        let mut connections = lock(&shared.connections);
        connections.retain(|connection| !connection.is_finished());
        connections.push(connection);
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| respond(request, Arc::clone(&shared)));
    // How it ends is up to the client, and to the faults.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn respond(
    request: hyper::Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let method = request.method().clone();
    let (request, body) = request.into_parts();
    let request = Request {
        path: request.uri.path().to_owned(),
        query: query(request.uri.query().unwrap_or_default()),
        user_agent: request
            .headers
            .get(USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
    };
    shared.change(|state| state.requests.push(request.clone()));
    Ok(answer(&method, &request, body, &shared).await.unwrap_or_else(|refusal| refusal.into_response()))
}

async fn answer(
    method: &Method,
    request: &Request,
    body: Incoming,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Refusal> {
    let scope = Scope::parse(&request.path)?;
    let may_create = method == Method::POST && scope.resource == "events";
    if method != Method::GET && !may_create {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "tests write by other means",
        ));
    }
    let verb = match (request.parameter("watch"), request.parameter("continue")) {
        _ if may_create => Verb::Create,
        (Some(_), _) => Verb::Watch,
        (None, Some(_)) => Verb::NextPage,
        (None, None) => Verb::List,
    };
    let fault = shared.change(|state| state.faults.take(scope.resource, verb));
    let mut is_cut = false;
    match fault {
        Some(Fault::Status(code)) => return Err(Refusal::fault(code)),
        Some(Fault::Gone) => return Err(Refusal::gone()),
        Some(Fault::Delay(delay)) => time::sleep(delay).await,
        Some(Fault::Cut) => is_cut = true,
        None => {}
    }
    match verb {
        Verb::Watch => respond::watch(&scope, request, shared, is_cut),
        Verb::Create => {
            let body = body.collect().await.map_err(|error| Refusal::bad(&error.to_string()))?;
            create::create(&scope, &body.to_bytes(), shared)
        }
        Verb::List | Verb::NextPage => respond::read(&scope, request, shared, is_cut),
    }
}

fn query(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
