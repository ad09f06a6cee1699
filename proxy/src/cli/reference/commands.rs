//! The command line, said by the parser itself.

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, CommandFactory};
use serde::Serialize;

/// A command and those below it. What is hidden from people is left out.
#[derive(Serialize)]
pub(super) struct Verb {
    name: String,
    about: String,
    /// What the help says behind everything else.
    after: String,
    arguments: Vec<Argument>,
    verbs: Vec<Verb>,
}

/// A flag, an option or a word.
#[derive(Serialize)]
struct Argument {
    id: String,
    long: Option<String>,
    short: Option<char>,
    help: String,
    /// `flag`, `value`, or `values` where it may be repeated.
    takes: &'static str,
    value_name: Option<String>,
    /// The only values that there are; none where any is taken.
    choices: Vec<Choice>,
    defaults: Vec<String>,
    required: bool,
    /// Taken by every verb.
    global: bool,
    /// The value is a file.
    file: bool,
}

#[derive(Serialize)]
struct Choice {
    name: String,
    help: String,
}

/// The whole of it.
pub(super) fn tree() -> Verb {
    verb(&crate::cli::Cli::command())
}

fn verb(command: &Command) -> Verb {
    Verb {
        name: command.get_name().to_owned(),
        about: text(command.get_about()),
        after: text(command.get_after_help()),
        arguments: command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .map(argument)
            .collect(),
        verbs: command
            .get_subcommands()
            .filter(|below| !below.is_hide_set())
            .map(verb)
            .collect(),
    }
}

fn argument(argument: &Arg) -> Argument {
    let takes = match argument.get_action() {
        ArgAction::Append => "values",
        ArgAction::Set => "value",
        _ => "flag",
    };
    let parser = argument.get_value_parser();
    let choices = parser.possible_values().filter(|_| takes != "flag");
    Argument {
        id: argument.get_id().to_string(),
        long: argument.get_long().map(str::to_owned),
        short: argument.get_short(),
        help: text(argument.get_help()),
        takes,
        value_name: argument
            .get_value_names()
            .and_then(|names| names.first())
            .map(ToString::to_string),
        choices: choices
            .into_iter()
            .flatten()
            .filter(|choice| !choice.is_hide_set())
            .map(|choice| Choice {
                name: choice.get_name().to_owned(),
                help: text(choice.get_help()),
            })
            .collect(),
        defaults: argument
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect(),
        required: argument.is_required_set(),
        global: argument.is_global_set(),
        file: parser.type_id() == clap::builder::ValueParser::path_buf().type_id(),
    }
}

fn text(styled: Option<&StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_people_may_type() {
        let tree = tree();
        let verb = |name: &str| tree.verbs.iter().find(|verb| verb.name == name);
        assert!(verb("reference").is_none() && verb("probe").is_none(), "hidden");
        let config = tree.arguments.iter().find(|one| one.id == "config").unwrap();
        assert!(config.global && config.file && config.takes == "value");
        assert!(
            tree.arguments
                .iter()
                .any(|one| one.id == "set" && one.takes == "values")
        );
        let ca = verb("ca").unwrap();
        let install = ca.verbs.iter().find(|verb| verb.name == "install").unwrap();
        assert!(
            install
                .arguments
                .iter()
                .any(|one| one.id == "pod" && one.takes == "flag")
        );
        assert!(install.arguments.iter().all(|one| !one.help.is_empty()));
    }
}
