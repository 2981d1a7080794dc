//! Events that clients tell of.

use http_body_util::{BodyExt as _, Full};
use hyper::{Response, StatusCode, body::Bytes};
use k8s_openapi::api::events::v1::Event;
use proxy_model::ObjectName;
use serde_json::Value;

use super::{
    Shared,
    respond::{Body, Refusal, Scope, json_response},
};

/// Stores an Event, if it is one that a real server would take.
pub(super) fn create(scope: &Scope, body: &[u8], shared: &Shared) -> Result<Response<Body>, Refusal> {
    let object: Value = serde_json::from_slice(body).map_err(|error| Refusal::bad(&error.to_string()))?;
    let event: Event =
        serde_json::from_value(object.clone()).map_err(|error| Refusal::bad(&error.to_string()))?;
    let namespace = scope.namespace.clone().unwrap_or_default();
    let typed = object["apiVersion"] == scope.api_version && object["kind"] == scope.kind;
    let complaint = if typed { complaint(&event, &namespace) } else { Some("apiVersion or kind") };
    if let Some(field) = complaint {
        let message = format!("Event is invalid: {field}: {object}");
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &message));
    }
    let name = ObjectName { namespace, name: event.metadata.name.clone().unwrap_or_default() };
    let stored = shared.change(|state| {
        let exists = state.store.get(scope.resource, name.clone()).is_some();
        (!exists).then(|| state.store.put(scope.resource, name.clone(), object))
    });
    let stored =
        stored.ok_or_else(|| Refusal::new(StatusCode::CONFLICT, "AlreadyExists", &name.to_string()))?;
    let body = Full::new(Bytes::from(stored.to_string())).map_err(|never| match never {}).boxed_unsync();
    Ok(json_response(StatusCode::CREATED, body))
}

/// The first field that a real server would not accept (`pkg/apis/core/validation/events.go`).
fn complaint(event: &Event, namespace: &str) -> Option<&'static str> {
    let Event { metadata, regarding, reporting_controller, reporting_instance, action, reason, .. } = event;
    let is_name = |name: &str| {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        (1..=253).contains(&name.len()) && name.chars().all(is_part)
    };
    let of = |field: &Option<String>| field.clone().unwrap_or_default();
    let fits = |field: &Option<String>| (1..=128).contains(&of(field).len());
    let subject = regarding.clone().unwrap_or_default();
    // What has no namespace is told of in this one.
    let home = subject.namespace.clone().unwrap_or_else(|| "default".to_owned());
    [
        (is_name(&of(&metadata.name)), "metadata.name"),
        (of(&metadata.namespace) == namespace, "metadata.namespace"),
        (home == namespace, "regarding.namespace"),
        (subject.kind.is_some() && subject.name.is_some(), "regarding"),
        (event.event_time.is_some(), "eventTime"),
        (fits(reporting_controller), "reportingController"),
        (fits(reporting_instance), "reportingInstance"),
        (fits(action), "action"),
        (fits(reason), "reason"),
        (of(&event.note).len() <= 1024, "note"),
        (matches!(of(&event.type_).as_str(), "Normal" | "Warning"), "type"),
    ]
    .into_iter()
    .find_map(|(holds, field)| (!holds).then_some(field))
}
