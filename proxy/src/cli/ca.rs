//! `ca init|show|rotate|install|uninstall`: the local authority, by which Agents that speak HTTPS trust us.

mod install;
mod show;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Exit, InputArgs};
use crate::catalog::Catalog;
use crate::cli::output::{complain, say};
use crate::config::Config;
use crate::intercept::CgroupGlob;
use crate::tls::ca::store::Wanted;
use crate::tls::ca::{self, CaError, Facts, Published, Role, Store};
use crate::trust::processes::{self, Process, Targets};
use crate::trust::{BundleState, Files, Place, host_store};

/// `ca`
#[derive(clap::Args)]
pub struct CaArgs {
    #[command(subcommand)]
    verb: CaVerb,
    /// Work on the files of another system below this folder, such as an image that is being built
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum CaVerb {
    /// Make the local authority
    Init {
        /// Throw away the one that is there: every Agent must then be restarted
        #[arg(long, conflicts_with = "if_missing")]
        replace: bool,
        /// Do nothing when there is one
        #[arg(long)]
        if_missing: bool,
    },
    /// Fingerprint, constraints, validity, and who trusts it
    Show,
    /// Make the next authority and publish it beside the present one; with --finish, let it take over
    Rotate {
        /// The next authority takes over and the old one is forgotten
        #[arg(long)]
        finish: bool,
        /// Although processes run that know only the old one
        #[arg(long, requires = "finish")]
        force: bool,
    },
    /// Make the Agents of this host trust the authority: drop-ins for their units
    Install(install::InstallArgs),
    /// Remove exactly what `ca install` wrote
    Uninstall,
}

/// `ca`
pub(super) fn run(args: &CaArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let context = Context {
        place: Place::new(&args.root),
        config: loaded.config,
        json: args.json,
    };
    let done = match &args.verb {
        CaVerb::Init { replace, if_missing } => context.init(*replace, *if_missing),
        CaVerb::Show => show::run(&context),
        CaVerb::Rotate { finish: false, .. } => context.rotate(),
        CaVerb::Rotate { force, .. } => context.finish(*force),
        CaVerb::Install(args) => install::install(&context, args),
        CaVerb::Uninstall => install::uninstall(&context),
    };
    done.unwrap_or_else(|failure| {
        complain!("agent-fips-proxy: {}", failure.message);
        failure.exit
    })
}

/// Why a verb did not do what it should.
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        let exit = match &error {
            _ if error.is_privilege() => Exit::NoPermission,
            CaError::None(_) | CaError::File { .. } | CaError::Busy(_) => Exit::Unavailable,
            CaError::Exists(_) | CaError::Rotation(_) => Exit::Usage,
            CaError::Permissions { .. } | CaError::Malformed { .. } | CaError::Unfit { .. } => Exit::Config,
            CaError::Crypto { .. } => Exit::Internal,
        };
        Self::new(exit, error.to_string())
    }
}

type Done = Result<Exit, Failure>;

/// What all verbs work with.
struct Context {
    place: Place,
    config: Config,
    json: bool,
}

/// What `init` and `rotate` print as JSON.
#[derive(Serialize)]
struct Changed<'a> {
    changed: bool,
    role: Role,
    authority: Option<&'a Facts>,
    /// What to do next.
    next: Vec<String>,
}

impl Context {
    /// The store, as a file of the place.
    fn store(&self) -> Store {
        Store::new(&self.place.at(&self.config.ca.dir))
    }

    fn domains(&self) -> Vec<String> {
        Catalog::new(&self.config.site).domains()
    }

    /// Fails where the operator brings an authority of their own.
    fn ours(&self, what: &str) -> Result<(), Failure> {
        match &self.config.ca.certificate_file {
            None => Ok(()),
            Some(file) => Err(Failure::new(
                Exit::Usage,
                format!(
                    "the authority is your own ({}, ca.certificate_file): {what}",
                    file.display()
                ),
            )),
        }
    }

    fn init(&self, replace: bool, if_missing: bool) -> Done {
        self.ours("none is made. Replace its files, then reload the proxy")?;
        let store = self.store();
        if if_missing && store.exists() {
            self.changed(false, Role::Current, None, Vec::new());
            return Ok(Exit::Ok);
        }
        let host = host_name();
        let facts = store.init(&self.wanted(&host, &self.domains()), replace)?;
        self.refresh()?;
        let mut next = vec!["agent-fips-proxy ca install".to_owned()];
        if replace {
            next.push(
                "restart every Agent: those that run trust the authority that was thrown away".to_owned(),
            );
        }
        next.push(RELOAD.to_owned());
        self.changed(true, Role::Current, Some(&facts), next);
        Ok(Exit::Ok)
    }

    fn rotate(&self) -> Done {
        self.ours("it is not rotated here. Replace its files, then reload the proxy")?;
        let host = host_name();
        let facts = self.store().rotate(&self.wanted(&host, &self.domains()))?;
        self.refresh()?;
        let next = vec![
            RELOAD.to_owned(),
            "restart the Agents one by one, whenever it suits: each then trusts both".to_owned(),
            "agent-fips-proxy ca rotate --finish".to_owned(),
        ];
        self.changed(true, Role::Next, Some(&facts), next);
        Ok(Exit::Ok)
    }

    fn finish(&self, force: bool) -> Done {
        self.ours("it is not rotated here")?;
        let store = self.store();
        let published = store.published()?;
        let next = published.iter().find(|one| one.role == Role::Next);
        if let Some(next) = next.filter(|_| !force && self.place.is_running()) {
            let old = self.older_than(next);
            if !old.is_empty() {
                return Err(Failure::new(
                    Exit::Unavailable,
                    format!(
                        "not yet: these processes started before the next authority was published ({}) and would be \
                         cut off: {}. Restart them, or say --force",
                        ca::moment(next.published),
                        old.join(", ")
                    ),
                ));
            }
        }
        let facts = store.finish()?;
        self.refresh()?;
        self.changed(true, Role::Current, Some(&facts), vec![RELOAD.to_owned()]);
        Ok(Exit::Ok)
    }

    /// Processes that do not know this authority although they trust ours, or are Agents that the host's store serves.
    fn older_than(&self, next: &Published) -> Vec<String> {
        let by_host = host_store::Flavour::of(&self.place)
            .is_ok_and(|flavour| !flavour.present(&self.place).is_empty());
        self.processes()
            .iter()
            .filter(|process| process.is_older_than(next.published))
            // One whose environment cannot be read may well trust us.
            .filter(|process| process.by.is_some() || by_host || !process.readable)
            .map(describe)
            .collect()
    }

    fn wanted<'a>(&self, host: &'a str, domains: &'a [String]) -> Wanted<'a> {
        Wanted {
            host,
            domains,
            days: self.config.ca.validity_days,
            now: ca::now(),
        }
    }

    /// What was installed follows a change of the authority; what was not stays away.
    fn refresh(&self) -> Result<(), Failure> {
        if let Ok(files) = Files::new(&self.place, &self.config.ca.dir)
            && files.bundle_state(&self.place) == BundleState::Stale
        {
            files.write(&self.place)?;
        }
        if let Ok(flavour) = host_store::Flavour::of(&self.place)
            && !flavour.present(&self.place).is_empty()
        {
            flavour.sync(&self.place, &self.store().published()?)?;
        }
        Ok(())
    }

    /// Processes of this host; none for a place that does not run.
    fn processes(&self) -> Vec<Process> {
        if !self.place.is_running() {
            return Vec::new();
        }
        let globs: Vec<CgroupGlob> = self
            .config
            .intercept
            .agents
            .cgroups
            .iter()
            .filter_map(|text| CgroupGlob::parse(text).ok())
            .collect();
        let store = self.store();
        let bundle = self.config.ca.dir.join("bundle.pem");
        let targets = Targets {
            trust_dir: &store.trust_dir(),
            bundle: &bundle,
            authorities: &store.authorities_file(),
        };
        processes::find(targets, &globs)
    }

    fn changed(&self, changed: bool, role: Role, authority: Option<&Facts>, next: Vec<String>) {
        if self.json {
            json(&Changed {
                changed,
                role,
                authority,
                next,
            });
            return;
        }
        match authority {
            Some(facts) => say!(
                "{} authority {}, valid until {}, for {}",
                match role {
                    Role::Next => "next",
                    Role::Current | Role::Supplied => "local",
                },
                facts.id(),
                facts.ends(),
                facts.permitted.join(", ")
            ),
            None => say!("there is a local authority already"),
        }
        for step in next {
            say!("-> {step}");
        }
    }
}

const RELOAD: &str = "systemctl reload agent-fips-proxy";

/// A process in a message.
fn describe(process: &Process) -> String {
    format!("{} (pid {})", process.name, process.pid)
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

fn json<T: Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say!("{text}"),
        Err(error) => complain!("agent-fips-proxy: {error}"),
    }
}

/// Paths as a message lists them.
fn list(paths: &[impl AsRef<Path>]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.as_ref().display().to_string())
        .collect();
    paths.join(", ")
}
