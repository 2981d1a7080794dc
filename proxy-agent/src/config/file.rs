//! Files of configuration: what they say, and where they say it (CFG-02).

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::ConfigError;
use crate::document::{Document, Format, Position, Repeated, Step, documents, dotted, steps};

/// A file that was read, if not yet understood.
pub(super) struct ConfigFile {
    path: PathBuf,
    text: String,
}

/// What a file says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
}

/// What a file says.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    pub(super) value: T,
    /// What it is made of, less what it leaves open.
    pub(super) given: Value,
    /// Fields that are there twice, or that nobody knows, and where.
    pub(super) oddities: Vec<String>,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self { path: path.to_owned(), text }),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the first document, which is all that kube-proxy reads.
    pub(super) fn first<T: DeserializeOwned>(&self, wanted: Type) -> Result<Decoded<T>, ConfigError> {
        let (document, oddities) = self.documents().next().ok_or_else(|| self.lacks(wanted))??;
        self.decode(&document, oddities, wanted)
    }

    /// Reads the document of this type, whatever stands before and after it.
    pub(super) fn only<T: DeserializeOwned>(&self, wanted: Type) -> Result<Decoded<T>, ConfigError> {
        for document in self.documents() {
            let (document, oddities) = document?;
            if says(&document.value, wanted) {
                return self.decode(&document, oddities, wanted);
            }
        }
        Err(self.lacks(wanted))
    }

    /// How many documents there are, whether or not they can be read.
    pub(super) fn count(&self) -> usize {
        self.documents().count()
    }

    /// Where a field of the first document is, or what it would be part of.
    pub(super) fn position(&self, path: &[Step]) -> Option<Position> {
        self.documents().next()?.ok()?.0.position(path)
    }

    /// Each document, with what is odd about how it is written.
    fn documents(&self) -> impl Iterator<Item = Result<(Document<'_>, Vec<String>), ConfigError>> {
        let strict = documents(Format::Yaml, &self.text, Repeated::Refused);
        let lenient = documents(Format::Yaml, &self.text, Repeated::Last);
        let read = strict.into_iter().zip(lenient).map(|documents| match documents {
            (Ok(strict), _) => Ok((strict, Vec::new())),
            // It can be read if the last of several fields counts, so that was all that was wrong.
            (Err(fault), Ok(lenient)) => Ok((lenient, vec![placed(fault.position, &fault.cause)])),
            (Err(fault), Err(_)) => Err(ConfigError::malformed(&self.path, fault.position, fault.cause)),
        });
        // Between markers there may be comments alone.
        read.filter(|document| !document.as_ref().is_ok_and(|(document, _)| document.value.is_null()))
    }

    fn decode<T: DeserializeOwned>(
        &self,
        document: &Document<'_>,
        mut oddities: Vec<String>,
        wanted: Type,
    ) -> Result<Decoded<T>, ConfigError> {
        let malformed =
            |path: &[Step], cause: String| ConfigError::malformed(&self.path, document.position(path), cause);
        for (name, expected) in [("apiVersion", wanted.api_version), ("kind", wanted.kind)] {
            match document.value.get(name).map(|found| (found.as_str(), found)) {
                Some((Some(found), _)) if found == expected => {}
                Some((_, found)) => {
                    return Err(malformed(
                        &[Step::field(name)],
                        format!("{name} is {found}, not {expected:?}"),
                    ));
                }
                None => return Err(malformed(&[], format!("{name} is missing; it should be {expected:?}"))),
            }
        }
        let mut given = document.value.clone();
        if let Some(fields) = given.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        remove_nulls(&mut given);
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(path_steps(&path));
        let value = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(&given, &mut note))
            .map_err(|error| {
                let path = steps(error.path());
                let field = if path.is_empty() { String::new() } else { format!("{}: ", dotted(&path)) };
                malformed(&path, format!("{field}{}", error.into_inner()))
            })?;
        oddities.extend(
            unknown
                .iter()
                .map(|path| placed(document.position(path), &format!("unknown field {}", dotted(path)))),
        );
        Ok(Decoded { value, given, oddities })
    }

    fn lacks(&self, wanted: Type) -> ConfigError {
        let Type { api_version, kind } = wanted;
        ConfigError::malformed(&self.path, None, format!("there is no {kind} of {api_version} in it"))
    }
}

fn says(value: &Value, wanted: Type) -> bool {
    let field = |name| value.get(name).and_then(Value::as_str);
    field("apiVersion") == Some(wanted.api_version) && field("kind") == Some(wanted.kind)
}

fn placed(position: Option<Position>, what: &str) -> String {
    position.map_or_else(|| what.to_owned(), |position| format!("{position}: {what}"))
}

/// In Go, null is as good as nothing.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

fn path_steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Map { parent, key } => (parent, Some(Step::field(key))),
        Path::Seq { parent, index } => (parent, Some(Step::Item(*index))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    path_steps(parent).into_iter().chain(step).collect()
}
