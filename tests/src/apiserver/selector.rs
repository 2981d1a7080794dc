//! Which objects a request asks for.

use serde_json::Value;

/// Label and field requirements, all of which must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    of: Of,
    key: String,
    test: Test,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Label,
    Field,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Missing,
    Equal(String),
    /// Also if it is missing.
    NotEqual(String),
}

impl Selector {
    /// Understands the equality-based syntax; as a real server, only the fields that it has an index for.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for text in split(labels) {
            requirements.push(Requirement::parse(Of::Label, text));
        }
        for text in split(fields) {
            let requirement = Requirement::parse(Of::Field, text);
            let known = FIELDS.contains(&requirement.key.as_str());
            if !known || !matches!(requirement.test, Test::Equal(_) | Test::NotEqual(_)) {
                return Err(format!("field label not supported: {text}"));
            }
            requirements.push(requirement);
        }
        Ok(Self { requirements })
    }

    /// Adds the namespace of the path.
    pub(super) fn within(mut self, namespace: Option<&str>) -> Self {
        self.requirements.extend(namespace.map(|namespace| Requirement {
            of: Of::Field,
            key: "metadata.namespace".to_owned(),
            test: Test::Equal(namespace.to_owned()),
        }));
        self
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(object))
    }
}

fn split(selector: Option<&str>) -> impl Iterator<Item = &str> {
    selector.unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty())
}

impl Requirement {
    fn parse(of: Of, text: &str) -> Self {
        let (key, test) = if let Some((key, value)) = text.split_once("!=") {
            (key, Test::NotEqual(value.to_owned()))
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Test::Equal(value.trim_start_matches('=').to_owned()))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Test::Missing)
        } else {
            (text, Test::Exists)
        };
        Self { of, key: key.to_owned(), test }
    }

    fn matches(&self, object: &Value) -> bool {
        let value = match self.of {
            Of::Label => &object["metadata"]["labels"][&self.key],
            Of::Field => self.key.split('.').fold(object, |value, key| &value[key]),
        };
        match &self.test {
            Test::Exists => !value.is_null(),
            Test::Missing => value.is_null(),
            Test::Equal(wanted) => value.as_str().unwrap_or_default() == wanted,
            Test::NotEqual(unwanted) => value.as_str().unwrap_or_default() != unwanted,
        }
    }
}

const FIELDS: [&str; 5] =
    ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type", "spec.nodeName"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, fields: &str) -> bool {
        let object = json!({
            "metadata": {"name": "a", "namespace": "web", "labels": {"app": "x", "empty": ""}},
            "spec": {"clusterIP": "10.0.0.1"},
        });
        Selector::parse(Some(labels), Some(fields)).unwrap().matches(&object)
    }

    #[test]
    fn labels_are_tested_for_presence_and_value() {
        for selector in
            ["", "app", "empty", "!other", "app=x", "app==x", "app!=y", "other!=y", "app=x,!other"]
        {
            assert!(matches(selector, ""), "{selector}");
        }
        for selector in ["other", "!app", "!empty", "app=y", "app!=x", "app=x,other"] {
            assert!(!matches(selector, ""), "{selector}");
        }
    }

    #[test]
    fn fields_are_tested_for_value() {
        for selector in
            ["metadata.name=a", "spec.clusterIP!=None", "metadata.namespace=web,spec.type!=ExternalName"]
        {
            assert!(matches("", selector), "{selector}");
        }
        for selector in ["metadata.name=b", "spec.clusterIP!=10.0.0.1", "metadata.name!=a"] {
            assert!(!matches("", selector), "{selector}");
        }
    }

    #[test]
    fn fields_without_an_index_are_refused() {
        assert!(Selector::parse(None, Some("spec.ports=1")).is_err());
        assert!(Selector::parse(None, Some("metadata.name")).is_err());
    }
}
