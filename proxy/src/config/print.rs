//! The table told to people: what is in use and why, a file to begin with, and the reference page.

use std::fmt::Write as _;

use super::Config;
use super::keys::{Draft, Key, TABLE};
use super::load::Loaded;
use crate::catalog::{self, Protocol};

/// Width of comments in the default file.
const WIDTH: usize = 100;

/// Every key with its value and its source, then the warnings.
pub fn show(loaded: &Loaded) -> String {
    let width = |text: fn(&super::Setting) -> usize, most| {
        loaded.settings.iter().map(text).max().unwrap_or(0).min(most)
    };
    let keys = width(|setting| setting.key.len(), 60);
    let values = width(|setting| setting.value.len(), 40);
    let mut text = String::new();
    for setting in &loaded.settings {
        line(
            &mut text,
            &format!(
                "{:keys$}  {:values$}  # {}",
                setting.key, setting.value, setting.source
            ),
        );
    }
    for warning in &loaded.warnings {
        line(&mut text, &format!("warning: {warning}"));
    }
    text
}

/// A configuration file with every key, explained and commented out: as it stands it sets nothing.
pub fn default_file() -> String {
    let config = documented();
    let mut text = String::new();
    line(
        &mut text,
        "# Configuration of agent-fips-proxy, written by `agent-fips-proxy config default`.",
    );
    line(
        &mut text,
        "# A key that stays commented out has its default. Flags win over variables, variables over this file.",
    );
    let mut open: Vec<&str> = Vec::new();
    for key in TABLE {
        let (section, name) = key.split();
        let headings: Vec<&str> = section.split('.').filter(|part| !part.is_empty()).collect();
        let common = open.iter().zip(&headings).take_while(|(a, b)| a == b).count();
        line(&mut text, "");
        for (depth, heading) in headings.iter().enumerate().skip(common) {
            line(&mut text, &format!("{}{heading}:", "  ".repeat(depth)));
        }
        let indent = "  ".repeat(headings.len());
        open = headings;
        comment(&mut text, &indent, key.effect);
        comment(&mut text, &indent, &format!("Accepted: {}.", key.accepted));
        if let Some(words) = key.default_words {
            comment(&mut text, &indent, &format!("Default: {words}."));
        }
        comment(&mut text, &indent, &format!("Variable: {}", variables(key)));
        line(&mut text, &format!("{indent}#{name}: {}", (key.get)(&config)));
    }
    text
}

/// The reference page, in Markdown.
pub fn reference() -> String {
    let config = documented();
    let mut text = String::from(INTRODUCTION);
    let mut open = None;
    for key in TABLE {
        let section = key.path.split_once('.').map_or("General", |(section, _)| section);
        if open != Some(section) {
            open = Some(section);
            line(&mut text, "");
            line(&mut text, &format!("## {section}"));
        }
        let default = key
            .default_words
            .map_or_else(|| format!("`{}`", (key.get)(&config)), str::to_owned);
        line(&mut text, "");
        line(&mut text, &format!("### `{}`", key.path));
        line(&mut text, "");
        line(&mut text, key.effect);
        line(&mut text, "");
        line(&mut text, "| | |");
        line(&mut text, "|---|---|");
        line(&mut text, &format!("| Variable | `{}` |", key.variable()));
        if let Some(fallback) = key.fallback {
            line(
                &mut text,
                &format!("| Stands in | `{fallback}`: weighs more than the default, less than the file |"),
            );
        }
        line(&mut text, &format!("| Default | {default} |"));
        line(&mut text, &format!("| Accepted | {} |", key.accepted));
        line(&mut text, &format!("| Who should change it | {} |", key.who));
    }
    text.push_str(PRODUCTS);
    for entry in catalog::TABLE
        .iter()
        .filter(|entry| entry.protocol == Protocol::Http)
    {
        line(&mut text, &format!("| `{}` | {} |", entry.name, entry.title));
    }
    text
}

/// The default of a setting, as documented: in words where it is not one fixed value, else as YAML on one line.
pub fn default_value(key: &Key) -> String {
    key.default_words
        .map_or_else(|| (key.get)(&documented()), str::to_owned)
}

const PRODUCTS: &str = "
## Product names

What `upstream.endpoints` and `upstream.proxy.products` take; PRODUCTS.md has the intake names of each.

| name | what |
|---|---|
";

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated from the tables of proxy/src/config/keys and proxy/src/catalog by `cargo xtask docs`. Do not edit. -->

Settings come in layers: `--set key=value` over the environment over the file (`/etc/agent-fips-proxy/config.yaml`, or
`--config`) over the defaults. `agent-fips-proxy config show` prints every value with its source, `config check` every
error at once.

Every key has a variable: `DD_FIPS_PROXY_` and the path in upper case, joined by `_`. In a variable and with `--set`,
a list is written with commas (`80,443`) and a map as `name=value,name=value`. The environment file
(`/etc/default/agent-fips-proxy`, or `--env-file`) holds lines `NAME=value`. It is read again at a reload: a variable
that the process got from it follows it.

Unknown keys and variables, wrong types, values out of range, and settings that cannot be together are errors: the
program does not start (exit code 78), and a reload keeps what it has.
";

/// The defaults as documented, the same on every machine.
fn documented() -> Config {
    let mut config = Draft::default().config;
    config.worker.threads = 2;
    config
}

fn variables(key: &Key) -> String {
    key.fallback.map_or_else(
        || key.variable(),
        |fallback| format!("{}, else {fallback}", key.variable()),
    )
}

fn comment(text: &mut String, indent: &str, words: &str) {
    let mut row = format!("{indent}#");
    for word in words.split_whitespace() {
        if row.len() + 1 + word.len() > WIDTH {
            line(text, &row);
            row = format!("{indent}#");
        }
        row.push(' ');
        row.push_str(word);
    }
    line(text, &row);
}

fn line(text: &mut String, row: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", row.trim_end());
}
