//! From the text of a file to the objects in it.

use std::fmt;

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::object::Object;
use crate::document::{Document, Format, Position, Repeated, Step, documents, dotted, steps};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Object>,
    /// What could not be understood; the objects are not all then.
    pub(super) problems: Vec<Problem>,
    /// Kinds that are nobody's business here.
    pub(super) ignored: Vec<Type>,
}

/// A part of a file that cannot be understood.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    document: usize,
    position: Option<Position>,
    field: Option<String>,
    cause: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { document, position, field, cause } = self;
        write!(f, "document {document}")?;
        if let Some(position) = position {
            write!(f, ", {position}")?;
        }
        if let Some(field) = field {
            write!(f, ", field {field}")?;
        }
        write!(f, ": {cause}")
    }
}

/// Reads what can be read; each document, and each item of a list, stands alone.
pub(super) fn parse(format: Format, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for document in documents(format, text, Repeated::Refused) {
        match document {
            // Only comments.
            Ok(document) if document.value.is_null() => {}
            Ok(mut document) => {
                let value = document.value.take();
                unfold(&document, value, None, Vec::new(), &mut parsed);
            }
            Err(unreadable) => parsed.problems.push(Problem {
                document: unreadable.number,
                position: unreadable.position,
                field: None,
                cause: unreadable.cause,
            }),
        }
    }
    parsed
}

fn unfold(document: &Document<'_>, value: Value, of: Option<&Type>, path: Vec<Step>, parsed: &mut Parsed) {
    match understand(value, of) {
        Ok(Found::Object(object)) => parsed.objects.push(object),
        Ok(Found::Items(items, of)) => {
            for (index, item) in items.into_iter().enumerate() {
                let path = [path.as_slice(), &[Step::field("items"), Step::Item(index)]].concat();
                unfold(document, item, of.as_ref(), path, parsed);
            }
        }
        Ok(Found::Ignored(found)) => parsed.ignored.push(found),
        Err(fault) => {
            let path = [path, fault.path].concat();
            parsed.problems.push(Problem {
                document: document.number,
                position: document.position(&path),
                field: (!path.is_empty()).then(|| dotted(&path)),
                cause: fault.cause,
            });
        }
    }
}

/// What a value says that it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Type {
    api_version: String,
    kind: String,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.api_version, self.kind)
    }
}

enum Found {
    Object(Object),
    /// With the type that the items need not repeat.
    Items(Vec<Value>, Option<Type>),
    Ignored(Type),
}

struct Fault {
    path: Vec<Step>,
    cause: String,
}

impl Fault {
    fn at(path: &[&str], cause: impl Into<String>) -> Self {
        Self { path: path.iter().copied().map(Step::field).collect(), cause: cause.into() }
    }
}

/// `of` is the type of the items of the list that holds the value, if they all have one.
fn understand(mut value: Value, of: Option<&Type>) -> Result<Found, Fault> {
    let Some(fields) = value.as_object_mut() else {
        return Err(Fault::at(&[], "not an object"));
    };
    if let Some(of) = of {
        fields.entry("apiVersion").or_insert_with(|| of.api_version.clone().into());
        fields.entry("kind").or_insert_with(|| of.kind.clone().into());
    }
    let text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Fault::at(&[name], "not a string")),
        None => Err(Fault::at(&[], format!("{name} is missing"))),
    };
    let found = Type { api_version: text("apiVersion")?, kind: text("kind")? };
    match (found.api_version.as_str(), found.kind.as_str()) {
        (CORE, "Service") => typed(value).map(Object::Service).map(completed),
        (CORE, "Node") => typed(value).map(Object::Node).map(completed),
        (CORE, "Pod") => typed(value).map(Object::Pod).map(completed),
        (DISCOVERY, "EndpointSlice") => typed(value).map(Object::EndpointSlice).map(completed),
        (CORE, "List") => items(value).map(|items| Found::Items(items, None)),
        (CORE, "ServiceList" | "NodeList" | "PodList") | (DISCOVERY, "EndpointSliceList") => {
            let kind = found.kind.trim_end_matches("List").to_owned();
            items(value).map(|items| Found::Items(items, Some(Type { kind, ..found })))
        }
        _ => Ok(Found::Ignored(found)),
    }
}

fn completed(mut object: Object) -> Found {
    object.complete();
    Found::Object(object)
}

fn items(mut list: Value) -> Result<Vec<Value>, Fault> {
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(_) => Err(Fault::at(&["items"], "not a list")),
    }
}

fn typed<K: DeserializeOwned + Metadata<Ty = ObjectMeta>>(value: Value) -> Result<Box<K>, Fault> {
    let object: Box<K> = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = steps(error.path());
        Fault { path, cause: error.into_inner().to_string() }
    })?;
    if object.metadata().name.as_deref().is_none_or(str::is_empty) {
        return Err(Fault::at(&["metadata"], "name is missing"));
    }
    Ok(object)
}

const CORE: &str = "v1";
const DISCOVERY: &str = "discovery.k8s.io/v1";

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parsed: &Parsed) -> Vec<String> {
        parsed.objects.iter().map(|object| object.key().to_string()).collect()
    }

    fn problems(parsed: &Parsed) -> Vec<String> {
        parsed.problems.iter().map(ToString::to_string).collect()
    }

    fn yaml(text: &str) -> Parsed {
        parse(Format::Yaml, text)
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";

    #[test]
    fn documents_of_all_kinds_are_read_and_completed() {
        let parsed = yaml(
            "# the cluster\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: web}\n--- # next\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: b}\naddressType: IPv4\n\
             ports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]\n...\n---\n\n---\n\
             {apiVersion: v1, kind: Node, metadata: {name: c, namespace: ignored}}\n---\n\
             {apiVersion: v1, kind: Pod, metadata: {name: d}, spec: {nodeName: c, containers: [{name: app}]}}",
        );
        assert_eq!(problems(&parsed), [""; 0]);
        assert_eq!(names(&parsed), ["Service web/a", "EndpointSlice default/b", "Node c", "Pod default/d"]);
        let Object::EndpointSlice(slice) = &parsed.objects[1] else { unreachable!() };
        let port = &slice.ports.as_ref().unwrap()[0];
        assert_eq!(
            (port.name.as_deref(), port.protocol.as_deref(), port.port),
            (Some(""), Some("TCP"), Some(80))
        );
        assert_eq!(slice.endpoints.as_ref().unwrap()[0].conditions, None);
    }

    #[test]
    fn lists_are_unfolded() {
        let parsed = yaml(
            "{apiVersion: v1, kind: List, items: [\n\
             {apiVersion: v1, kind: ServiceList, items: [{metadata: {name: a}}, {metadata: {name: b}}]},\n\
             {apiVersion: v1, kind: NodeList, items: [{metadata: {name: c}}]},\n\
             {apiVersion: v1, kind: PodList, items: [{metadata: {name: e, namespace: web}}]},\n\
             {apiVersion: discovery.k8s.io/v1, kind: EndpointSliceList, items:\n\
             [{addressType: IPv6, metadata: {name: d}}]}]}\n",
        );
        assert_eq!(problems(&parsed), [""; 0]);
        assert_eq!(
            names(&parsed),
            ["Service default/a", "Service default/b", "Node c", "Pod web/e", "EndpointSlice default/d"]
        );
    }

    #[test]
    fn other_kinds_are_ignored() {
        let parsed = yaml("apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: v1\nkind: Secret\n");
        assert_eq!((names(&parsed).len(), problems(&parsed).len()), (0, 0));
        let ignored: Vec<String> = parsed.ignored.iter().map(ToString::to_string).collect();
        assert_eq!(ignored, ["apps/v1 Deployment", "v1 Secret"]);
    }

    #[test]
    fn wrong_type_is_reported_with_its_place_and_the_others_are_read() {
        let parsed = yaml(&format!(
            "{SERVICE}---\napiVersion: v1\nkind: Service\nmetadata:\n  name: b\nspec:\n  ports:\n  - name: http\n    \
             port: eighty\n---\n{}",
            SERVICE.replace("name: a", "name: c")
        ));
        assert_eq!(names(&parsed), ["Service default/a", "Service default/c"]);
        assert_eq!(
            problems(&parsed),
            [
                "document 2, line 12, column 11, field spec.ports[0].port: invalid type: string \"eighty\", expected i32"
            ]
        );
    }

    #[test]
    fn wrong_syntax_is_reported_with_its_place_and_the_others_are_read() {
        let parsed = yaml(&format!("{SERVICE}---\nkind: Service\nspec: [\n---\n{SERVICE}"));
        assert_eq!(names(&parsed), ["Service default/a", "Service default/a"]);
        let [problem] = &problems(&parsed)[..] else { panic!("{parsed:?}") };
        assert!(problem.starts_with("document 2, line 6, column"), "{problem}");
    }

    #[test]
    fn items_of_lists_are_reported_by_their_index() {
        let parsed = yaml(
            "apiVersion: v1\nkind: List\nitems:\n- kind: Service\n- 7\n- apiVersion: v1\n  kind: Service\n  \
             metadata: {name: a}\n  spec: {ports: 1}\n",
        );
        assert_eq!(
            problems(&parsed),
            [
                "document 1, line 4, column 3, field items[0]: apiVersion is missing",
                "document 1, line 5, column 3, field items[1]: not an object",
                "document 1, line 9, column 17, field items[2].spec.ports: invalid type: integer `1`, expected a \
                 sequence",
            ]
        );
    }

    #[test]
    fn what_makes_no_object_is_reported() {
        let cause = |text: &str| problems(&yaml(text)).join("; ");
        assert_eq!(cause("words"), "document 1, line 1, column 1: not an object");
        assert_eq!(cause("kind: Service"), "document 1, line 1, column 1: apiVersion is missing");
        assert_eq!(cause("apiVersion: 1"), "document 1, line 1, column 13, field apiVersion: not a string");
        assert_eq!(
            cause("apiVersion: v1\nkind: Service\nmetadata: {namespace: x}"),
            "document 1, line 3, column 11, field metadata: name is missing"
        );
        assert_eq!(
            cause("{apiVersion: v1, kind: NodeList, items: {}}"),
            "document 1, line 1, column 41, field items: not a list"
        );
    }

    #[test]
    fn words_stay_words() {
        let parsed = yaml("apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: no, y: 'true'}}\n");
        assert_eq!(problems(&parsed), [""; 0]);
        let parsed = yaml("apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: 1}}\n");
        assert_eq!(
            problems(&parsed),
            [
                "document 1, line 3, column 33, field metadata.labels.x: invalid type: integer `1`, expected a string"
            ]
        );
    }

    #[test]
    fn nothing_is_no_problem() {
        for text in ["", "\n", "# words\n", "---\n---\n", "...\n", "\u{feff}", "null"] {
            let parsed = yaml(text);
            assert_eq!((names(&parsed).len(), problems(&parsed)), (0, vec![]), "{text:?}");
        }
        assert_eq!(problems(&parse(Format::Json, " \n")), [""; 0]);
    }

    #[test]
    fn json_is_read_and_its_faults_are_placed() {
        let service = "{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\"}}\n";
        let parsed = parse(Format::Json, &format!("{service}{service}{{\"kind\"\n: ]"));
        assert_eq!(names(&parsed), ["Service default/a", "Service default/a"]);
        assert_eq!(problems(&parsed), ["document 3, line 6, column 3: expected value"]);
        let parsed = parse(Format::Json, &format!("{service}{}", service.replace("\"a\"", "[]")));
        assert_eq!(
            problems(&parsed),
            ["document 2, line 4, column 23, field metadata.name: invalid type: sequence, expected a string"]
        );
    }
}
