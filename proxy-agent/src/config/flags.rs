//! kube-proxy's flags on the command line, and what they say in terms of its configuration (LIFE-01, LIFE-02).

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, error::ErrorKind, value_parser,
};
use serde_json::{Map, Value, json};

use super::{
    duration::GoDuration,
    fields::{FIELDS, Field, Flag, Kind, is_obeyed_beside_file, twin},
    kube_proxy::KubeProxyConfiguration,
};

/// The flags that were given, as the fields of a file would be.
#[derive(Clone, Debug, Default)]
pub struct KubeProxyFlags {
    given: Vec<(&'static Field, Value)>,
}

impl KubeProxyFlags {
    /// Paths of the fields that flags were given for.
    pub(super) fn paths(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.set().map(|(path, _)| path)
    }

    /// What is set to what.
    fn set(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let is_nftables = self.text("mode") == "nftables";
        self.given.iter().map(move |(field, value)| {
            let twin = twin(field).filter(|_| is_nftables);
            (twin.unwrap_or(field).path, value)
        })
    }

    fn text(&self, path: &str) -> &str {
        let given = self.given.iter().find(|(field, _)| field.path == path);
        given.and_then(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// The whole configuration, if there is no file.
    pub(super) fn configuration(&self) -> serde_json::Result<KubeProxyConfiguration> {
        // The defaults of others depend on these.
        let mut config = KubeProxyConfiguration {
            bind_address: self.text("bindAddress").to_owned(),
            mode: self.text("mode").to_owned(),
            ..KubeProxyConfiguration::default()
        };
        config.set_defaults();
        let mut value = serde_json::to_value(&config)?;
        for (path, given) in self.set() {
            put(&mut value, path, given.clone());
        }
        serde_json::from_value(value)
    }

    /// Flags that have effect although there is a file; of lists, those of flags come first.
    pub(super) fn overlay(
        &self,
        config: &KubeProxyConfiguration,
    ) -> serde_json::Result<KubeProxyConfiguration> {
        let mut value = serde_json::to_value(config)?;
        for (field, given) in self.given.iter().filter(|(field, _)| is_obeyed_beside_file(field.path)) {
            let mut given = given.clone();
            if let (Value::Array(list), Some(more)) = (&mut given, value.pointer(&pointer(field.path))) {
                list.extend(more.as_array().into_iter().flatten().cloned());
            }
            put(&mut value, field.path, given);
        }
        serde_json::from_value(value)
    }

    /// Names of the flags that have no effect because there is a file.
    pub(super) fn ignored_beside_file(&self) -> impl Iterator<Item = &'static str> + '_ {
        let ignored = self.given.iter().filter(|(field, _)| !is_obeyed_beside_file(field.path));
        ignored.filter_map(|(field, _)| field.flag.map(|flag| flag.name))
    }
}

/// The path in terms of JSON.
pub(super) fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

/// Puts a value where a path leads, through whatever is there.
fn put(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for name in path.split('.') {
        at = &mut at[name];
    }
    *at = new;
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        // Headings come in the order of their first flags, and what means nothing comes last.
        let (inert, active): (Vec<_>, Vec<_>) = FIELDS.iter().partition(|field| field.inert.is_some());
        active.into_iter().chain(inert).filter_map(argument).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(field: &Field) -> Option<Arg> {
    let flag = field.flag?;
    let arg = Arg::new(flag.name).long(flag.name).help_heading(flag.heading);
    let arg = match field.inert {
        Some(why) => arg.help(format!("No effect: {why}")),
        None => arg.help(flag.help),
    };
    let arg = if flag.name.len() == 1 { arg.short(flag.name.chars().next()) } else { arg };
    Some(match flag.kind {
        Kind::Bool => arg
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(go_bool),
        Kind::Int => arg.value_name("NUMBER").allow_negative_numbers(true).value_parser(value_parser!(i32)),
        Kind::Float => arg.value_name("NUMBER").allow_negative_numbers(true).value_parser(finite),
        Kind::Verbosity => arg.value_name("NUMBER").value_parser(value_parser!(u32)),
        Kind::Duration => arg.value_name("DURATION").value_parser(value_parser!(GoDuration)),
        Kind::Text(name) => arg.value_name(name),
        Kind::List(name) => list(arg, name),
        Kind::Gates => list(arg, "NAME=true|false,..."),
        Kind::Modules => list(arg, "MODULE=NUMBER,..."),
    })
}

fn list(arg: Arg, name: &'static str) -> Arg {
    arg.value_name(name).action(ArgAction::Append).value_delimiter(',')
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Vec::new();
        for field in FIELDS {
            let Some(flag) = field.flag else { continue };
            if let Some(value) = value(flag, matches)? {
                given.push((field, value));
            }
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What a flag says, as a file would say it; nothing if it was not given.
fn value(flag: Flag, matches: &ArgMatches) -> Result<Option<Value>, Error> {
    fn one<T: Clone + Send + Sync + 'static>(flag: Flag, matches: &ArgMatches) -> Option<T> {
        matches.get_one::<T>(flag.name).cloned()
    }
    Ok(match flag.kind {
        Kind::Bool => one::<bool>(flag, matches).map(Value::from),
        Kind::Int => one::<i32>(flag, matches).map(Value::from),
        Kind::Float => one::<f32>(flag, matches).map(Value::from),
        Kind::Verbosity => one::<u32>(flag, matches).map(Value::from),
        Kind::Duration => one::<GoDuration>(flag, matches).map(|duration| duration.to_string().into()),
        Kind::Text(_) => one::<String>(flag, matches).filter(|text| !text.is_empty()).map(Value::from),
        Kind::List(_) => entries(flag, matches).map(Value::from),
        Kind::Gates => entries(flag, matches).map(|entries| gates(flag, &entries)).transpose()?,
        Kind::Modules => entries(flag, matches).map(|entries| modules(flag, &entries)).transpose()?,
    })
}

/// The entries of a list, less the empty ones that charts leave.
fn entries(flag: Flag, matches: &ArgMatches) -> Option<Vec<String>> {
    let entries = matches.get_many::<String>(flag.name)?.map(|entry| entry.trim().to_owned());
    let entries: Vec<_> = entries.filter(|entry| !entry.is_empty()).collect();
    (!entries.is_empty()).then_some(entries)
}

fn gates(flag: Flag, entries: &[String]) -> Result<Value, Error> {
    let mut gates = Map::new();
    for entry in entries {
        let (name, enabled) = entry
            .split_once('=')
            .ok_or_else(|| unreadable(flag, entry, "there is no `=true` or `=false`"))?;
        let enabled = go_bool(enabled.trim()).map_err(|reason| unreadable(flag, entry, &reason))?;
        gates.insert(name.trim().to_owned(), enabled.into());
    }
    Ok(gates.into())
}

fn modules(flag: Flag, entries: &[String]) -> Result<Value, Error> {
    let module = |entry: &String| {
        let parts = entry.split_once('=').and_then(|(name, level)| Some((name, level.parse::<u32>().ok()?)));
        match parts {
            Some((name, level)) if !name.is_empty() => Ok(json!({ "filePattern": name, "verbosity": level })),
            _ => Err(unreadable(flag, entry, "not a module and its verbosity, such as watch=6")),
        }
    };
    entries.iter().map(module).collect()
}

fn unreadable(flag: Flag, entry: &str, reason: &str) -> Error {
    Error::raw(
        ErrorKind::ValueValidation,
        format!("invalid value '{entry}' for '--{}': {reason}\n", flag.name),
    )
}

fn finite(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|number: &f32| number.is_finite()).ok_or_else(|| "not a number".to_owned())
}

/// A truth value as Go reads it (`strconv.ParseBool`).
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}
