//! `flare`: a support bundle. Shows what is in it, asks before it writes, and again before it sends.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Exit, InputArgs};
use crate::catalog::{Catalog, Product};
use crate::cli::output::{complain, say};
use crate::config::{self, Config};
use crate::observe::redact::Document;
use crate::secret::Secrets;

mod archive;
mod collect;
mod facts;
mod form;
mod place;
mod sections;
mod send;

use collect::{Collected, Context};

/// Where the API key is looked for when no file is named; the Agent's own variable.
const API_KEY: &str = "DD_API_KEY";

/// `flare`
#[derive(clap::Args)]
pub struct FlareArgs {
    /// The support case that it belongs to
    #[arg(value_parser = send::case_id)]
    case_id: Option<String>,
    /// Your address, as the support case has it
    #[arg(long, value_name = "ADDRESS", value_parser = send::email)]
    email: Option<String>,
    /// Where to write it [default: agent-fips-proxy-flare-<host>-<time>.zip here, else in the folder for temporary files]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ask nothing: write, and send where there is an API key
    #[arg(long)]
    yes: bool,
    /// Ask neither the running proxy nor the intakes for anything
    #[arg(long)]
    local: bool,
    /// Write it only
    #[arg(long)]
    no_send: bool,
    /// File with the API key for sending, of mode 0600 [default: the variable DD_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// `flare`
pub(super) fn run(args: &FlareArgs, inputs: &InputArgs) -> Exit {
    match try_run(args, inputs) {
        Ok(()) => Exit::Ok,
        Err((exit, message)) => {
            complain!("agent-fips-proxy flare: {message}");
            exit
        }
    }
}

type Failure = (Exit, String);

fn try_run(args: &FlareArgs, inputs: &InputArgs) -> Result<(), Failure> {
    if !args.yes && !io::stdin().is_terminal() {
        return Err((
            Exit::Usage,
            "nobody can answer here (standard input is no terminal): add --yes to write it, and --no-send to keep it".to_owned(),
        ));
    }
    let key = api_key(args)?;
    let wants_to_send = args.case_id.is_some() || args.email.is_some();
    if wants_to_send && !args.no_send && key.is_none() {
        return Err((
            Exit::Usage,
            format!(
                "no API key to send with: set {API_KEY}, name a file with --api-key-file, or add --no-send"
            ),
        ));
    }
    if let Some(output) = &args.output {
        place::refuse_existing(output)?;
    }
    // A configuration that is wrong is a reason for a support case, and no reason to have no bundle.
    let (config, problem) = match inputs.load() {
        Ok(loaded) => (loaded.config, None),
        Err(errors) => (Config::default(), Some(errors.to_string())),
    };
    let collected = gather(
        args,
        inputs,
        &config,
        problem.clone(),
        key.as_deref().map(String::as_str),
    );
    show(&collected);
    if !args.yes && !ask("Write these files into a zip?")? {
        say!("nothing was written");
        return Ok(());
    }
    let (path, size) = write(args, &collected)?;
    say!("written: {} ({size} bytes)", path.display());
    if args.no_send {
        return Ok(());
    }
    let Some(key) = key else {
        say!(
            "not sent: no API key (set {API_KEY}, or name a file with --api-key-file); send the file to support yourself"
        );
        return Ok(());
    };
    if let Some(problem) = problem {
        return Err((
            Exit::Config,
            format!(
                "not sent, the file stays: the configuration says how to reach the intake, and is wrong\n{problem}"
            ),
        ));
    }
    let (destination, way) = destination(&config);
    if !args.yes && !ask(&format!("Send it to {destination}{way}?"))? {
        say!("not sent; the file stays");
        return Ok(());
    }
    let parcel = send::Parcel {
        path: &path,
        case_id: args.case_id.as_deref(),
        email: args.email.as_deref(),
        host: &collect::host_name(),
        key: &key,
    };
    let sent = send::send(&config, &parcel).map_err(|(exit, message)| {
        let path = path.display();
        (
            exit,
            format!("not sent to {destination}: {message}\nthe file stays: {path}"),
        )
    })?;
    say!("sent to {destination}{way}, {}", sent.tls);
    say!("case id: {}", sent.case_id);
    Ok(())
}

/// Everything, scrubbed.
fn gather(
    args: &FlareArgs,
    inputs: &InputArgs,
    config: &Config,
    problem: Option<String>,
    key: Option<&str>,
) -> Vec<Collected> {
    let document = document(config, key);
    let context = Arc::new(Context::new(config.clone(), problem, inputs.flags(), args.local));
    let mut collected = Vec::new();
    for section in sections::TABLE {
        if io::stderr().is_terminal() {
            complain!("collecting {}", section.file);
        }
        collected.push(collect::collect(section, &context, &document));
    }
    let manifest = collect::manifest(&collected, &context, &document);
    collected.insert(0, manifest);
    collected
}

/// A scrubber that knows what this process can know.
fn document(config: &Config, key: Option<&str>) -> Document {
    let mut document = Document::new();
    if let Some(key) = key {
        document.know(key);
    }
    for (name, value) in std::env::vars_os() {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && Document::is_telling(name)
        {
            document.know(value);
        }
    }
    let secrets = Secrets::default();
    for path in config.upstream.secret_files().into_iter().flatten() {
        let Ok(text) = secrets.read(path) else { continue };
        for line in String::from_utf8_lossy(&text).lines() {
            document.know(line);
            if let Some((_, password)) = line.split_once(':') {
                document.know(password);
            }
        }
    }
    if let Some(commit) = option_env!("AFP_GIT_COMMIT") {
        document.trust(commit);
    }
    document
}

fn show(collected: &[Collected]) {
    say!("The bundle has these files (secrets are taken out of each):\n");
    for file in collected {
        let note = file
            .note
            .as_ref()
            .map_or_else(String::new, |note| format!("  {note}"));
        say!("  {:<32} {:>9} bytes{note}", file.name, file.bytes.len());
    }
    let all: usize = collected.iter().map(|file| file.bytes.len()).sum();
    say!("  {:<32} {all:>9} bytes", "together");
}

fn write(args: &FlareArgs, collected: &[Collected]) -> Result<(PathBuf, u64), Failure> {
    let (path, file) = place::create(args.output.as_deref(), &collect::host_name())?;
    let written = archive::write(&file, collected);
    written.map(|size| (path.clone(), size)).map_err(|error| {
        // Half a bundle is none. It is ours: it was made above, and was not there before.
        let _ = std::fs::remove_file(&path);
        place::cannot("write", &path, &error)
    })
}

/// True for yes. The end of input is a no.
fn ask(question: &str) -> Result<bool, Failure> {
    let broken = |error: io::Error| (Exit::Internal, format!("cannot ask: {error}"));
    let mut out = io::stdout().lock();
    write!(out, "\n{question} [y/N] ")
        .and_then(|()| out.flush())
        .map_err(broken)?;
    let mut answer = String::new();
    let length = io::stdin().lock().read_line(&mut answer).map_err(broken)?;
    if length == 0 {
        // The cursor is behind the question.
        say!("");
    }
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn api_key(args: &FlareArgs) -> Result<Option<Zeroizing<String>>, Failure> {
    let (from, text) = match &args.api_key_file {
        Some(path) => (path.display().to_string(), key_of_file(path)?),
        None => match std::env::var(API_KEY) {
            Ok(value) if !value.trim().is_empty() => (API_KEY.to_owned(), Zeroizing::new(value)),
            _ => return Ok(None),
        },
    };
    let key = Zeroizing::new(text.trim().to_owned());
    let sound = !key.is_empty()
        && key.len() <= 128
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if sound {
        Ok(Some(key))
    } else {
        Err((
            Exit::Usage,
            format!("{from} holds no API key: one has letters and digits only"),
        ))
    }
}

fn key_of_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = Secrets::default()
        .read(path)
        .map_err(|error| (Exit::Usage, format!("--api-key-file {error}")))?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The name that is sent to, and how it is reached where the operator says how.
fn destination(config: &Config) -> (String, String) {
    let name = Catalog::new(&config.site).host(Product::Flare);
    let (host, port) = config.upstream.endpoint(Product::Flare, &name);
    let mut way = String::new();
    if host != name {
        way.push_str(&format!(
            " at {} (upstream.endpoints)",
            config::authority(host, port)
        ));
    }
    if let Some(proxy) = &config.upstream.proxy.url {
        way.push_str(&format!(
            ", by the outbound proxy {} where that is used for it",
            proxy.authority()
        ));
    }
    (name, way)
}
