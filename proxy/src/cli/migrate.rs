//! `config migrate`: a configuration that takes over from the haproxy-based `datadog-fips-proxy` and fits this host's Agent. Read
//! from their files, printed, never written: whoever installs it has looked at it.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::Exit;
use super::doctor::agent_settings::Settings;
use crate::catalog::{Catalog, KNOWN_SITES, Product, Protocol, Site, TABLE};
use crate::cli::output::{complain, say};
use crate::trust::Place;

mod haproxy;

use haproxy::{Forward, Old};

/// The old proxy's configuration.
const OLD: &str = "/etc/datadog-fips-proxy/datadog-fips-proxy.cfg";
/// The Agent's settings that are looked at.
const SITE: &str = "site";
const FIPS: &str = "fips.enabled";
const FIPS_PORT: &str = "fips.port_range_start";
const FIPS_HTTPS: &str = "fips.https";
const FIPS_ADDRESS: &str = "fips.local_address";
/// Every setting of these.
const LOOKED_AT: &[&str] = &[SITE, FIPS, FIPS_PORT, FIPS_HTTPS, FIPS_ADDRESS];
/// Where the Agent's range begins unless it is told otherwise.
const PORT_RANGE_START: u16 = 9803;
/// More than any such file has, in bytes.
const LARGEST: u64 = 1 << 20;

/// `config migrate`
#[derive(clap::Args)]
pub struct MigrateArgs {
    /// Look at the system whose files begin here, such as an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// `config migrate`
pub(super) fn run(args: &MigrateArgs) -> Exit {
    let place = Place::new(&args.root);
    let old = match read_old(&place) {
        Ok(old) => old,
        Err((exit, problem)) => {
            complain!("agent-fips-proxy: {OLD}: {problem}");
            return exit;
        }
    };
    let agent = Settings::read(&place, LOOKED_AT);
    if old.is_none() && agent.is_none() {
        complain!(
            "agent-fips-proxy: nothing to migrate from: neither {OLD} nor an Agent's /etc/datadog-agent is here. \
             `agent-fips-proxy config default` prints a file to begin with"
        );
        return Exit::Unavailable;
    }
    let (settings, problems) =
        agent.map_or_else(|| (None, Vec::new()), |(read, problems)| (Some(read), problems));
    // What cannot be read may say anything: a proposal without it could be the opposite of what fits.
    if !problems.is_empty() {
        for problem in problems {
            complain!("agent-fips-proxy: {}; {}", problem.detail, problem.cure);
        }
        return Exit::Config;
    }
    let proposal = propose(old.as_ref(), settings.as_ref());
    say!("{}", proposal.text().trim_end());
    Exit::Ok
}

/// `None` where there is no old proxy.
fn read_old(place: &Place) -> Result<Option<Old>, (Exit, String)> {
    let path = place.at(OLD);
    let about = match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found,
    };
    let refuse = |error: std::io::Error| {
        let exit = match error.kind() {
            ErrorKind::PermissionDenied => Exit::NoPermission,
            _ => Exit::Unavailable,
        };
        (exit, format!("cannot be read: {error}"))
    };
    let about = about.map_err(refuse)?;
    if !about.is_file() || about.len() > LARGEST {
        return Err((
            Exit::Config,
            format!("no regular file of at most {} KiB", LARGEST >> 10),
        ));
    }
    let bytes = fs::read(&path).map_err(refuse)?;
    Ok(Some(haproxy::read(&String::from_utf8_lossy(&bytes))))
}

/// What is proposed: settings, each with the reason, and what has none.
#[derive(Debug, Default)]
struct Proposal {
    /// Key, value as YAML on one line, and why. In the order of the file.
    settings: Vec<(&'static str, String, String)>,
    /// Product and `host:port`.
    endpoints: Vec<(&'static str, String)>,
    notes: Vec<String>,
}

fn propose(old: Option<&Old>, agent: Option<&Settings>) -> Proposal {
    let mut proposal = Proposal::default();
    let site = proposal.site(old, agent);
    proposal.explicit(old, agent);
    if let (Some(old), Some(site)) = (old, &site) {
        let start = range_start(Some(old), agent).0;
        for forward in &old.forwards {
            proposal.endpoint(forward, start, &Catalog::new(site));
        }
    }
    proposal.rest(old, agent);
    proposal
}

/// The site that the old proxy's servers belong to: of those that are known, the one with most of them.
fn site_of(old: &Old) -> Option<Site> {
    let sites = KNOWN_SITES
        .iter()
        .filter_map(|known| known.domain.parse::<Site>().ok());
    sites
        .map(|site| {
            let catalog = Catalog::new(&site);
            let known = |forward: &&Forward| catalog.lookup(&forward.host).is_some();
            (old.forwards.iter().filter(known).count(), site)
        })
        .filter(|(count, _)| *count > 0)
        .max_by_key(|(count, _)| *count)
        .map(|(_, site)| site)
}

/// The first port, and who says so.
fn range_start(old: Option<&Old>, agent: Option<&Settings>) -> (u16, &'static str) {
    if let Some(port) = old.and_then(|old| old.stats) {
        return (port, "the old proxy's page of statistics");
    }
    match agent.and_then(|agent| agent.text(FIPS_PORT)?.parse().ok()) {
        Some(port) => (port, "the Agent's fips.port_range_start"),
        None => (PORT_RANGE_START, "the default"),
    }
}

impl Proposal {
    fn set(&mut self, key: &'static str, value: &dyn ToString, why: &str) {
        self.settings.push((key, value.to_string(), why.to_owned()));
    }

    /// The old proxy's site wins: it is where data goes today.
    fn site(&mut self, old: Option<&Old>, agent: Option<&Settings>) -> Option<Site> {
        let said = agent
            .and_then(|agent| agent.text(SITE))
            .filter(|text| !text.is_empty());
        let told: Option<Site> = said.as_ref().and_then(|text| text.parse().ok());
        if said.is_some() && told.is_none() {
            self.notes
                .push("The Agent's `site` is no domain name; it is passed over.".to_owned());
        }
        let used = old.and_then(site_of);
        match (&used, &told) {
            (Some(used), Some(told)) if used != told => self.notes.push(format!(
                "The Agent's site is {told}, the old proxy sends to {used}. One of the two is wrong: settle it first."
            )),
            (None, None) if agent.is_some() => self.notes.push(
                "The Agent names no site, which makes it datadoghq.com. Set `site` here if that is not meant.".to_owned(),
            ),
            _ => {}
        }
        match (used, told) {
            (Some(used), _) => {
                self.set("site", &used, "where the old proxy sends");
                Some(used)
            }
            (None, Some(told)) => {
                self.set("site", &told, "the Agent's");
                Some(told)
            }
            // The Agent's own default, which is ours.
            (None, None) => Some(Site::default()),
        }
    }

    fn explicit(&mut self, old: Option<&Old>, agent: Option<&Settings>) {
        let fips = agent.is_some_and(|agent| agent.is_on(FIPS));
        let why = match (fips, old.is_some()) {
            (true, _) => "the Agent's fips.enabled is true: it sends to these ports",
            (false, true) => "in place of the old proxy's ports",
            (false, false) => "the Agent's fips.enabled is not set: nobody uses these ports",
        };
        self.set("explicit.enabled", &(fips || old.is_some()), why);
        let (start, who) = range_start(old, agent);
        if start != PORT_RANGE_START {
            self.set("explicit.port_range_start", &start, who);
        }
        if let (Some(theirs), true) = (agent.and_then(|agent| agent.text(FIPS_PORT)), fips)
            && theirs != start.to_string()
        {
            self.notes.push(format!(
                "The old proxy's range begins at {start}, the Agent's at another port."
            ));
        }
        self.address(old, agent.filter(|_| fips));
        if fips && agent.is_some_and(|agent| agent.switch(FIPS_HTTPS) != Some(false)) {
            self.notes
                .push("In the Agent, set fips.https: false: these ports take plain HTTP.".to_owned());
        }
        let (value, why) = if fips {
            (
                false,
                "the Agent sends to the ports above; `true` takes also what it sends elsewhere",
            )
        } else {
            (true, "the Agent keeps its own URLs; its connections are taken")
        };
        self.set("intercept.enabled", &value, why);
    }

    /// Where the ports are: on localhost, unless the Agent looks elsewhere.
    fn address(&mut self, old: Option<&Old>, agent: Option<&Settings>) {
        let is_localhost = |text: &str| ["localhost", "127.0.0.1", "::1"].contains(&text);
        let address = agent.and_then(|agent| agent.text(FIPS_ADDRESS)?.parse::<IpAddr>().ok());
        if let Some(address) = address.filter(|address| !is_localhost(&address.to_string())) {
            self.set(
                "explicit.local_address",
                &format!("\"{address}\""),
                "the Agent's fips.local_address",
            );
        }
        for forward in old.iter().flat_map(|old| &old.forwards) {
            let listened = match forward.address.as_str() {
                "" => "every address of the host",
                text if is_localhost(text) || address.is_some_and(|address| address.to_string() == text) => {
                    continue;
                }
                text => text,
            };
            self.note_once(format!(
                "The old proxy listened on {listened}, in clear text. This one listens where the Agent of the host looks; if Agents in \
                 containers used the other, see explicit.local_address."
            ));
        }
    }

    /// A server that is not the product's own intake.
    fn endpoint(&mut self, forward: &Forward, start: u16, catalog: &Catalog) {
        let Some(product) = product_at(forward.port.wrapping_sub(start)) else {
            let note = format!(
                "Port {} led to {}: no port of ours does that.",
                forward.port, forward.host
            );
            self.note_once(note);
            return;
        };
        let own = catalog.lookup(&forward.host).is_some() && forward.host_port == 443;
        let entry = (product.name(), format!("{}:{}", forward.host, forward.host_port));
        if !own && !self.endpoints.contains(&entry) {
            self.endpoints.push(entry);
        }
    }

    fn note_once(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn rest(&mut self, old: Option<&Old>, agent: Option<&Settings>) {
        if agent.is_some() && !agent.is_some_and(|agent| agent.is_on(FIPS)) {
            self.notes.push(
                "Agents that speak HTTPS need the local authority: `agent-fips-proxy ca init`, `ca install`."
                    .to_owned(),
            );
        }
        let Some(old) = old else { return };
        if !self.endpoints.is_empty() {
            self.notes.push(
                "Endpoints with private addresses (PrivateLink) are dialled only when upstream.allow_private names their network."
                    .to_owned(),
            );
        }
        for file in &old.roots {
            self.notes.push(format!(
                "The old proxy trusted {file}. Where that is a gateway's authority, upstream.ca_file takes it; it must be the host's to read."
            ));
        }
        for port in &old.unknown {
            self.notes.push(format!(
                "Port {port} of the old proxy led to no server that we understood."
            ));
        }
    }

    /// As a file.
    fn text(&self) -> String {
        let mut text = String::from(
            "# Proposed by `agent-fips-proxy config migrate` from what datadog-fips-proxy and the Agent of this host were told.\n",
        );
        for note in &self.notes {
            line(&mut text, &format!("# NOTE: {note}"));
        }
        let mut open = "";
        for (key, value, why) in &self.settings {
            let (section, name) = key.split_once('.').unwrap_or(("", key));
            if section != open && !section.is_empty() {
                line(&mut text, &format!("{section}:"));
            }
            open = section;
            let indent = if section.is_empty() { "" } else { "  " };
            line(&mut text, &format!("{indent}{name}: {value}  # {why}"));
        }
        if !self.endpoints.is_empty() {
            line(&mut text, "upstream:");
            line(&mut text, "  endpoints:");
            for (product, server) in &self.endpoints {
                // A text of JSON is one of YAML.
                line(
                    &mut text,
                    &format!("    {product}: {}", Value::from(server.as_str())),
                );
            }
        }
        text
    }
}

/// The product of this port of the range.
fn product_at(offset: u16) -> Option<Product> {
    TABLE
        .iter()
        .find(|entry| entry.offset == Some(offset) && entry.protocol == Protocol::Http)
        .map(|entry| entry.product)
}

/// One row. What stands in somebody else's file does not begin another: carriage returns and the like are dropped.
fn line(text: &mut String, row: &str) {
    let is_break = |letter: char| letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}');
    text.extend(row.chars().filter(|letter| !is_break(*letter)));
    text.push('\n');
}

#[cfg(test)]
mod tests;
