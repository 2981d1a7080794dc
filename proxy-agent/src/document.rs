//! A file's text as documents, and where in it a field is.
//!
//! Manifests and configuration files are read through it, so that what is wrong with either is told alike.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_path_to_error::Segment;
use serde_saphyr::{Options, Spanned, options::DuplicateKeyPolicy};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Yaml,
    Json,
}

impl Format {
    /// By the end of the name; `None` for a file that is no manifest. Hidden files are editors' own.
    pub(crate) fn of(name: &str) -> Option<Self> {
        if name.starts_with('.') {
            return None;
        }
        match name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// A document that could be read, though perhaps not understood.
pub(crate) struct Document<'a> {
    /// Counted from 1, empty documents left out.
    pub(crate) number: usize,
    pub(crate) value: Value,
    text: Excerpt<'a>,
    repeated: Repeated,
}

/// What becomes of a field that is there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// The document cannot be read.
    Refused,
    /// The last one counts, as in Go's decoders.
    Last,
}

/// Line and column, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A document that cannot be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Unreadable {
    pub(crate) number: usize,
    pub(crate) position: Option<Position>,
    pub(crate) cause: String,
}

/// One step from an object to a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Item(usize),
}

impl Step {
    pub(crate) fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }
}

/// The way to the value that could not be read.
pub(crate) fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Map { key } => Some(Step::field(key)),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

/// The path as people write it: `spec.ports[0].port`.
pub(crate) fn dotted(path: &[Step]) -> String {
    let path = path.iter().fold(String::new(), |path, step| match step {
        Step::Field(name) => format!("{path}.{name}"),
        Step::Item(index) => format!("{path}[{index}]"),
    });
    path.trim_start_matches('.').to_owned()
}

/// The documents of a file. (A field that is there twice counts once in JSON, whatever `repeated` says.)
pub(crate) fn documents(
    format: Format,
    text: &str,
    repeated: Repeated,
) -> Vec<Result<Document<'_>, Unreadable>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => {
            let read = |(text, number)| yaml(number, text, repeated);
            excerpts(text).into_iter().zip(1..).map(read).collect()
        }
        Format::Json => json(text),
    }
}

impl Document<'_> {
    /// Where the deepest part on the way to `path` is. Reads the document again, so it is for messages only.
    pub(crate) fn position(&self, path: &[Step]) -> Option<Position> {
        let tree: Spanned<Tree> =
            serde_saphyr::from_str_with_options(self.text.text, options(self.repeated)).ok()?;
        let mut at = &tree;
        for step in path {
            let next = match (step, &at.value) {
                (Step::Field(name), Tree::Map(fields)) => fields.get(name),
                (Step::Item(index), Tree::List(items)) => items.get(*index),
                _ => None,
            };
            let Some(next) = next else { break };
            at = next;
        }
        Some(self.text.position(at.referenced))
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Excerpt<'a> {
    lines_before: u64,
    text: &'a str,
}

impl Excerpt<'_> {
    fn position(&self, at: serde_saphyr::Location) -> Position {
        Position { line: self.lines_before + at.line(), column: at.column() }
    }
}

/// Cuts at the document markers, so that one bad document does not spoil the next.
///
/// At the start of a line YAML allows nothing else to look like a marker, not even inside a block of text.
fn excerpts(text: &str) -> Vec<Excerpt<'_>> {
    let mut excerpts = Vec::new();
    let mut start = 0;
    let mut lines_before = 0;
    let mut is_blank = true;
    let mut end = 0;
    for (line, number) in text.split_inclusive('\n').zip(0..) {
        let (begins, ends) = (is_marker(line, "---"), is_marker(line, "..."));
        if begins || ends {
            if !is_blank {
                excerpts.push(Excerpt { lines_before, text: &text[start..end] });
            }
            (start, lines_before, is_blank) = (end, number, true);
        }
        is_blank &= is_blank_line(if begins || ends { &line[3..] } else { line });
        end += line.len();
        if ends {
            (start, lines_before) = (end, number + 1);
        }
    }
    if !is_blank {
        excerpts.push(Excerpt { lines_before, text: &text[start..] });
    }
    excerpts
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// A directive (`%YAML 1.2`) says nothing about its document that matters here.
fn is_blank_line(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

fn yaml(number: usize, text: Excerpt<'_>, repeated: Repeated) -> Result<Document<'_>, Unreadable> {
    match serde_saphyr::from_str_with_options(text.text, options(repeated)) {
        Ok(value) => Ok(Document { number, value, text, repeated }),
        Err(error) => {
            let position = error.location().map(|at| text.position(at));
            let cause = match &error {
                // The parser would have the operator set one of its options.
                serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                    format!("the field {key} is there twice")
                }
                _ => without_position(&error.to_string()),
            };
            Err(Unreadable { number, position, cause })
        }
    }
}

fn json(text: &str) -> Vec<Result<Document<'_>, Unreadable>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut documents = Vec::new();
    let mut start = 0;
    while let Some(value) = values.next() {
        let number = documents.len() + 1;
        documents.push(match value {
            Ok(value) => {
                let excerpt = text.get(start..values.byte_offset()).unwrap_or_default();
                let lines_before = text.get(..start).unwrap_or_default().matches('\n').count();
                let text =
                    Excerpt { lines_before: lines_before.try_into().unwrap_or(u64::MAX), text: excerpt };
                // Read again as YAML, to find places.
                Ok(Document { number, value, text, repeated: Repeated::Last })
            }
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                let position = Position {
                    line: line.try_into().unwrap_or(u64::MAX),
                    column: column.try_into().unwrap_or(u64::MAX),
                };
                Err(Unreadable {
                    number,
                    position: Some(position),
                    cause: without_position(&error.to_string()),
                })
            }
        });
        start = values.byte_offset();
    }
    documents
}

/// The same for both passes over a document.
fn options(repeated: Repeated) -> Options {
    serde_saphyr::options! {
        duplicate_keys: match repeated {
            Repeated::Refused => DuplicateKeyPolicy::Error,
            Repeated::Last => DuplicateKeyPolicy::LastWins,
        },
        // Manifests are the operator's own, and a large cluster in one list exceeds any small number.
        budget: None,
        // As in YAML 1.2 and JSON; `no` is a string.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The cause alone: parsers say where at either end of their message, and counted from another start.
fn without_position(message: &str) -> String {
    let message = message.trim().trim_start_matches("error: ");
    let message = match message.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, cause)) => cause,
        None => message,
    };
    message.rsplit_once(" at line ").map_or(message, |(cause, _)| cause).trim_end().to_owned()
}

/// The shape of a document and where its parts are.
enum Tree {
    Map(HashMap<String, Spanned<Tree>>),
    List(Vec<Spanned<Tree>>),
    Scalar,
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TreeVisitor;

        impl<'de> Visitor<'de> for TreeVisitor {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut fields = HashMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    fields.insert(name, value);
                }
                Ok(Tree::Map(fields))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }

            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Scalar)
            }
        }

        deserializer.deserialize_any(TreeVisitor)
    }
}
