//! Manual pages and shell completions, from what the packaged program says of itself (`reference commands`, `reference settings`):
//! they are of exactly that program, and it carries no generator.

use std::path::Path;
use std::process::Command as Process;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, ValueHint};
use clap_complete::Shell;
use roff::{Roff, bold, italic, roman};
use serde_json::Value;

use super::{Job, NAME, date, write};
use crate::sh;

/// Section of the commands: an administrator's.
const SECTION: &str = "8";
/// Name of the page of the settings.
const SETTINGS: &str = "agent-fips-proxy.yaml";

/// Writes `man8/`, `man5/`, `completions/` and `config.example.yaml` below `made`.
pub fn make(job: &Job, made: &Path) -> Result<()> {
    let said = |words: &[&str]| sh::output(Process::new(&job.program).args(words));
    let tree: Value = serde_json::from_str(&said(&["reference", "commands"])?)?;
    let settings: Value = serde_json::from_str(&said(&["reference", "settings"])?)?;
    let day = date(job.epoch, "+%Y-%m-%d")?;
    let source = format!("{NAME} {}", job.version);
    let mut root = command(&tree)?;
    let pages = Pages {
        folder: &made.join("man8"),
        day: &day,
        source: &source,
    };
    pages.write(&root, NAME, &[])?;
    write(
        &made.join("man5").join(format!("{SETTINGS}.5")),
        settings_page(&settings, &day, &source)?,
    )?;
    for (shell, file) in [
        (Shell::Bash, "agent-fips-proxy.bash"),
        (Shell::Zsh, "_agent-fips-proxy"),
        (Shell::Fish, "agent-fips-proxy.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut root, NAME, &mut script);
        let mut script = String::from_utf8(script)?;
        if shell == Shell::Bash {
            script = labels(&root, script);
        }
        write(&made.join("completions").join(file), script)?;
    }
    write(&made.join("config.example.yaml"), said(&["config", "default"])?)
}

/// clap_complete 4.6.11 writes the labels of commands with a dash in them otherwise than it looks for them, and our own name has two:
/// nothing below the first word would be completed in bash (the suite `packages` asks bash).
fn labels(root: &Command, mut script: String) -> String {
    let mut paths = vec![(vec![root.get_name()], root)];
    while let Some((path, command)) = paths.pop() {
        let label = |dash: &str| {
            let names: Vec<String> = path.iter().map(|name| name.replace('-', dash)).collect();
            format!("\n        {})\n", names.join("__subcmd__"))
        };
        script = script.replace(&label("__subcmd__"), &label("__"));
        paths.extend(command.get_subcommands().map(|below| {
            let mut longer = path.clone();
            longer.push(below.get_name());
            (longer, below)
        }));
    }
    script
}

/// The parser once more, as far as help and completion go.
fn command(tree: &Value) -> Result<Command> {
    let mut command = Command::new(leaked(&tree["name"])?)
        .about(leaked(&tree["about"])?)
        .disable_help_subcommand(true);
    if tree["after"] != "" {
        command = command.after_help(leaked(&tree["after"])?);
    }
    for one in tree["arguments"].as_array().context("arguments")? {
        command = command.arg(argument(one)?);
    }
    for one in tree["verbs"].as_array().context("verbs")? {
        command = command.subcommand(self::command(one)?);
    }
    Ok(command)
}

fn argument(one: &Value) -> Result<Arg> {
    let mut argument = Arg::new(leaked(&one["id"])?)
        .help(leaked(&one["help"])?)
        .required(one["required"] == true)
        .global(one["global"] == true);
    if one["long"].is_string() {
        argument = argument.long(leaked(&one["long"])?);
    }
    if let Some(short) = one["short"].as_str().and_then(|text| text.chars().next()) {
        argument = argument.short(short);
    }
    if one["takes"] == "flag" {
        return Ok(argument.action(ArgAction::SetTrue));
    }
    if one["takes"] == "values" {
        argument = argument.action(ArgAction::Append);
    }
    if one["value_name"].is_string() {
        argument = argument.value_name(leaked(&one["value_name"])?);
    }
    let choices = one["choices"]
        .as_array()
        .context("choices")?
        .iter()
        .map(|choice| {
            let value = clap::builder::PossibleValue::new(leaked(&choice["name"])?);
            Ok(if choice["help"] == "" {
                value
            } else {
                value.help(leaked(&choice["help"])?)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    if !choices.is_empty() {
        argument = argument.value_parser(PossibleValuesParser::new(choices));
    } else if one["file"] == true {
        argument = argument.value_hint(ValueHint::AnyPath);
    }
    for value in one["defaults"].as_array().context("defaults")? {
        argument = argument.default_value(leaked(value)?);
    }
    Ok(argument)
}

/// clap wants texts that live as long as the program, which is not long.
fn leaked(value: &Value) -> Result<&'static str> {
    let text = value.as_str().with_context(|| format!("no text: {value}"))?;
    Ok(Box::leak(text.to_owned().into_boxed_str()))
}

/// The pages of the commands.
struct Pages<'a> {
    folder: &'a Path,
    day: &'a str,
    source: &'a str,
}

impl Pages<'_> {
    /// The page of a command and of all below it: `agent-fips-proxy-ca-init.8`. `above` are the options that all verbs take.
    fn write(&self, command: &Command, name: &str, above: &[Arg]) -> Result<()> {
        let globals: Vec<Arg> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .chain(above)
            .cloned()
            .collect();
        for below in command.get_subcommands() {
            self.write(below, &format!("{name}-{}", below.get_name()), &globals)?;
        }
        let page = command
            .clone()
            .args(above)
            .name(leaked(&Value::from(name))?)
            .bin_name(name.replacen(NAME, "\0", 1).replace('-', " ").replace('\0', NAME));
        let man = clap_mangen::Man::new(page)
            .section(SECTION)
            .title(name.to_ascii_uppercase())
            .date(self.day)
            .source(self.source)
            .manual("System Administration");
        let mut text = Vec::new();
        man.render(&mut text)?;
        let mut end = Roff::new();
        end.control("SH", ["SEE ALSO"]);
        let mut others = Vec::new();
        if name != NAME {
            others.extend([bold(NAME), roman(format!("({SECTION}), "))]);
        }
        others.extend([bold(SETTINGS), roman("(5)")]);
        end.text(others);
        end.to_writer(&mut text)?;
        write(&self.folder.join(format!("{name}.{SECTION}")), text)
    }
}

/// The page of the settings, in section 5.
fn settings_page(settings: &Value, day: &str, source: &str) -> Result<String> {
    let mut page = Roff::new();
    page.control(
        "TH",
        [&SETTINGS.to_ascii_uppercase(), "5", day, source, "File Formats"],
    );
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{SETTINGS} - configuration of {NAME}"))]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        page.control("PP", [] as [&str; 0]);
        page.text([roman(*paragraph)]);
    }
    page.control("SH", ["SETTINGS"]);
    for setting in settings.as_array().context("settings")? {
        let word = |name: &str| {
            setting[name]
                .as_str()
                .with_context(|| format!("{name} of {setting}"))
        };
        page.control("TP", [] as [&str; 0]);
        page.text([bold(word("path")?)]);
        page.text([roman(word("effect")?.replace('`', ""))]);
        page.control("RS", [] as [&str; 0]);
        for (name, value) in [
            ("Default", word("default")?),
            ("Accepted", word("accepted")?),
            ("Variable", word("variable")?),
        ] {
            page.control("br", [] as [&str; 0]);
            page.text([italic(name), roman(format!(": {}", value.replace('`', "")))]);
        }
        if let Some(fallback) = setting["fallback"].as_str() {
            page.text([roman(format!("(else {fallback})"))]);
        }
        page.control("RE", [] as [&str; 0]);
    }
    page.control("SH", ["FILES"]);
    for (file, what) in FILES {
        page.control("TP", [] as [&str; 0]);
        page.text([bold(*file)]);
        page.text([roman(*what)]);
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([
        bold(NAME),
        roman("(8), "),
        bold("agent-fips-proxy-config"),
        roman("(8)"),
    ]);
    Ok(page.to_roff())
}

const DESCRIPTION: &[&str] = &[
    "The file is YAML. Settings come in layers: --set over the environment over the file over the defaults. agent-fips-proxy config \
     show prints every value with its source, config check every error at once.",
    "Every setting has a variable: DD_FIPS_PROXY_ and the path in upper case, joined by _. In a variable, a list is written with commas \
     and a map as name=value,name=value.",
    "Unknown settings, wrong types, values out of range, and settings that cannot be together are errors: the program does not start \
     (exit code 78), and a reload keeps what it has.",
];

const FILES: &[(&str, &str)] = &[
    ("/etc/agent-fips-proxy/config.yaml", "This file."),
    (
        "/etc/default/agent-fips-proxy",
        "Variables, one NAME=value a line. Read again at a reload.",
    ),
    (
        "/usr/share/agent-fips-proxy/config.example.yaml",
        "Every setting with its default, commented out.",
    ),
];
