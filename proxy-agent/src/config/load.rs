//! From flags and files to one checked configuration (LIFE-01 to LIFE-06).

use std::{collections::BTreeSet, path::PathBuf};

use hyper::Uri;
use tracing_subscriber::EnvFilter;

use super::{
    Configuration, Task, address,
    args::RunArgs,
    fields,
    file::{ConfigFile, Decoded, Type},
    host::Host,
    kube_proxy::{self, KubeProxyConfiguration},
    logging,
    notes::{self, Note},
    problem::{ConfigError, Origin, Problem},
    sluice::{self, SluiceOptions},
    validate,
};
use crate::document::dotted;

impl Configuration {
    /// Reads flags and files, fills in defaults, and checks everything (LIFE-01 to LIFE-06).
    ///
    /// # Errors
    ///
    /// If a file cannot be read or understood, or if values cannot be used.
    pub fn load(args: &RunArgs, host: Host) -> Result<Self, ConfigError> {
        let mut loading = Loading::default();
        let own = loading.own(args)?;
        let file = args.config.as_deref().map(ConfigFile::read).transpose()?;
        let mut kube_proxy = match &file {
            Some(file) => loading.with_file(args, file)?,
            None => loading.without_file(args)?,
        };
        let name = kube_proxy.hostname_override.trim().to_lowercase();
        if !name.is_empty() {
            kube_proxy.hostname_override = name;
        }
        let origin = file.as_ref().map_or(Origin::Flags, Origin::File);
        let faults = validate::faults(&kube_proxy, host).into_iter().map(|fault| {
            // Flags for logging and the name overrule the file.
            let is_flag = args.kube_proxy.paths().any(|path| path == dotted(&fault.path))
                && fields::is_obeyed_beside_file(&dotted(&fault.path));
            Problem::with_field(fault, if is_flag { Origin::Flags } else { origin })
        });
        loading.problems.splice(0..0, faults);
        let api_servers = loading.api_servers(args, &own);
        if args.cleanup == Some(true) && args.cleanup_kube_proxy == Some(true) {
            let reason =
                "not together with --cleanup: that is about what Sluice left, and ends what it serves";
            loading.problems.push(Problem::with_flag("--cleanup-kube-proxy", "", reason));
        }
        if let Some(interval) = own.audit_interval.filter(|interval| interval.to_std().is_none()) {
            loading.problem("--audit-interval", &interval.to_string(), "must not be negative");
        }
        loading.problems.extend(own.capacities.problems(&args.sluice.capacities));
        let log = logging::filter(own.log.as_deref(), &kube_proxy.logging);
        if let Err(error) = EnvFilter::try_new(&log) {
            loading.problem("--log", &log, &error.to_string());
        }
        loading.explain(args, &kube_proxy, host)?;
        let Loading { problems, notes, files, given: _ } = loading;
        if !problems.is_empty() {
            return Err(ConfigError::Invalid(problems));
        }
        Ok(Self { task: task(args), kube_proxy, sluice: own, api_servers, log, notes, files })
    }
}

/// What to do. Like kube-proxy, the configuration is written before anything is done with it.
fn task(args: &RunArgs) -> Task {
    match &args.write_config_to {
        Some(path) => Task::WriteConfig(path.clone()),
        None if args.cleanup == Some(true) => Task::Cleanup,
        None if args.cleanup_kube_proxy == Some(true) => Task::CleanupKubeProxy,
        None if args.init_only == Some(true) => Task::InitOnly,
        None => Task::Run,
    }
}

const KUBE_PROXY: Type = Type { api_version: kube_proxy::API_VERSION, kind: kube_proxy::KIND };
const SLUICE: Type = Type { api_version: sluice::API_VERSION, kind: sluice::KIND };

/// What is known of the configuration so far.
#[derive(Default)]
struct Loading {
    problems: Vec<Problem>,
    notes: Vec<Note>,
    files: Vec<PathBuf>,
    /// Paths of fields that were set.
    given: BTreeSet<&'static str>,
}

impl Loading {
    fn problem(&mut self, flag: &str, value: &str, reason: &str) {
        self.problems.push(Problem::with_flag(flag, format!("{value:?}"), reason));
    }

    fn warn(&mut self, text: String) {
        self.notes.push(Note::Warning(text));
    }

    /// Sluice's own options.
    fn own(&mut self, args: &RunArgs) -> Result<SluiceOptions, ConfigError> {
        let Some(path) = &args.sluice_config else { return Ok(args.sluice.clone()) };
        self.files.push(path.clone());
        let file = ConfigFile::read(path)?;
        let Decoded { value, given: _, oddities } = file.only::<SluiceOptions>(SLUICE)?;
        // Nobody else's field can have got into this file.
        match oddities.first() {
            Some(oddity) => Err(ConfigError::malformed(path, None, oddity)),
            None => Ok(args.sluice.clone().or(value)),
        }
    }

    /// kube-proxy's configuration from its file, and from what flags say all the same.
    fn with_file(
        &mut self,
        args: &RunArgs,
        file: &ConfigFile,
    ) -> Result<KubeProxyConfiguration, ConfigError> {
        self.files.push(file.path().to_owned());
        let Decoded { value: mut config, given, oddities } =
            file.first::<KubeProxyConfiguration>(KUBE_PROXY)?;
        config.set_defaults();
        self.given = notes::given(&given);
        self.given.extend(args.kube_proxy.paths().filter(|path| fields::is_obeyed_beside_file(path)));
        if !oddities.is_empty() {
            self.warn(format!("{}: read in spite of {}", file.path().display(), oddities.join("; ")));
        }
        let others = file.count().saturating_sub(1);
        if others > 0 && args.sluice_config.as_deref() != Some(file.path()) {
            self.warn(format!(
                "{}: only the first document is read, as by kube-proxy; {others} more are there",
                file.path().display()
            ));
        }
        let ports = [("healthz-port", args.healthz_port), ("metrics-port", args.metrics_port)];
        let ports = ports.iter().filter(|(_, port)| port.is_some()).map(|(name, _)| *name);
        let ignored: Vec<_> =
            args.kube_proxy.ignored_beside_file().chain(ports).map(|name| format!("--{name}")).collect();
        if !ignored.is_empty() {
            self.warn(format!("without effect beside --config, as in kube-proxy: {}", ignored.join(", ")));
        }
        Ok(args.kube_proxy.overlay(&config)?)
    }

    /// kube-proxy's configuration from flags alone.
    fn without_file(&mut self, args: &RunArgs) -> Result<KubeProxyConfiguration, ConfigError> {
        self.given = args.kube_proxy.paths().collect();
        let mut config = args.kube_proxy.configuration()?;
        let addresses = [
            ("--healthz-port", args.healthz_port, &mut config.healthz_bind_address, address::HEALTHZ_PORT),
            ("--metrics-port", args.metrics_port, &mut config.metrics_bind_address, address::METRICS_PORT),
        ];
        for (flag, port, address, default) in addresses {
            *address = match port {
                // FLAG-34, FLAG-35: an empty address is not served at. A file would take it for the default.
                Some(0) if args.write_config_to.is_none() => String::new(),
                port => address::with_port(address, port.unwrap_or(default)),
            };
            if port.is_some() {
                self.notes.push(Note::Warning(format!("{flag} is deprecated: give a port with the address")));
            }
        }
        Ok(config)
    }

    /// The API servers to ask, if somebody says which.
    fn api_servers(&mut self, args: &RunArgs, own: &SluiceOptions) -> Vec<Uri> {
        let master = args.master.as_ref().filter(|master| !master.is_empty());
        let servers: Vec<_> = own.api_servers.iter().flatten().filter(|server| !server.is_empty()).collect();
        let kubeconfig = args.kube_proxy.paths().any(|path| path == "clientConnection.kubeconfig");
        if own.manifests.is_some() {
            let flags = [
                ("--kubeconfig", kubeconfig),
                ("--master", master.is_some()),
                ("--api-servers", !servers.is_empty()),
            ];
            for (flag, _) in flags.iter().filter(|(_, given)| *given) {
                self.problems.push(Problem::with_flag(
                    flag,
                    "",
                    "not together with --manifests: there is no API then",
                ));
            }
        }
        if master.is_some() && !servers.is_empty() {
            self.problems.push(Problem::with_flag(
                "--master",
                "",
                "not together with --api-servers: give one of them",
            ));
        }
        let named = master.map(|master| ("--master", master));
        let all = named.into_iter().chain(servers.into_iter().map(|server| ("--api-servers", server)));
        let mut parsed = Vec::new();
        for (flag, text) in all {
            match text.parse::<Uri>() {
                Ok(uri) if matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some() => {
                    parsed.push(uri);
                }
                _ => self.problem(flag, text, "must be a URL, such as https://192.0.2.1:6443"),
            }
        }
        parsed
    }

    /// Notes what is not as it may seem.
    fn explain(
        &mut self,
        args: &RunArgs,
        config: &KubeProxyConfiguration,
        host: Host,
    ) -> Result<(), ConfigError> {
        let mut flags = Vec::new();
        for (flag, value) in
            [("--boot-id-file", &args.boot_id_file), ("--machine-id-file", &args.machine_id_file)]
        {
            if value.is_some() {
                flags.push((flag, "kube-proxy makes no use of it either"));
            }
        }
        let from_flags: BTreeSet<_> = args.kube_proxy.paths().collect();
        let name = |path: &'static str| {
            let flag = fields::flag(path).filter(|_| {
                from_flags.contains(path) && (args.config.is_none() || fields::is_obeyed_beside_file(path))
            });
            flag.map_or_else(|| path.to_owned(), |flag| format!("--{}", flag.name))
        };
        self.notes.extend(notes::without_effect(config, &self.given, &flags, name)?);
        self.notes.extend(notes::complaints(config, host));
        Ok(())
    }
}
