//! What is done with Agents that speak HTTPS: `intercept.https*`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::catalog::{covers, is_dns_name, normalise};

/// `intercept.https`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpsPolicy {
    /// [`HttpsPolicy::Terminate`] once there is a local authority, [`HttpsPolicy::Passthrough`] until then.
    Auto,
    /// The Agent's session ends here, under the local authority.
    Terminate,
    /// The Agent's own session goes to its original destination as it is, is read and held to the policy.
    Passthrough,
    /// The Agent gets an alert.
    Refuse,
}

/// `intercept.https_below_policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BelowPolicy {
    /// The session is cut before the Agent has sent anything.
    Refuse,
    /// It is counted and goes on.
    Record,
}

/// An entry of `intercept.https_passthrough_names`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum HttpsException {
    /// An intake name, normalised. A leading `*` stands for any non-empty text within the first label.
    Name(String),
    /// A process, by its name in `/proc/<pid>/comm`.
    Process(String),
}

/// TASK_COMM_LEN less the final zero (Linux, `include/linux/sched.h`).
const LONGEST_PROCESS: usize = 15;
const PROCESS: &str = "process:";

impl HttpsException {
    /// True when it speaks of this name, which is normalised, or of this process.
    pub fn covers(&self, name: &str, process: Option<&str>) -> bool {
        match self {
            Self::Name(known) => known == name || covers(known, name),
            Self::Process(known) => process == Some(known.as_str()),
        }
    }
}

impl fmt::Display for HttpsException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Process(process) => write!(f, "{PROCESS}{process}"),
        }
    }
}

impl From<HttpsException> for String {
    fn from(exception: HttpsException) -> Self {
        exception.to_string()
    }
}

impl TryFrom<String> for HttpsException {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for HttpsException {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(process) = text.strip_prefix(PROCESS) {
            let fits = (1..=LONGEST_PROCESS).contains(&process.len())
                && process.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
            return match fits {
                true => Ok(Self::Process(process.to_owned())),
                false => Err(format!(
                    "`{text}` names no process: 1 to {LONGEST_PROCESS} printable bytes are expected after \
                     `{PROCESS}`, as `cat /proc/<pid>/comm` shows them"
                )),
            };
        }
        let name = normalise(text);
        let plain = name.strip_prefix('*').unwrap_or(&name);
        // What follows the wildcard may begin with `-` or `.`, as in `*-app.agent.datadoghq.com`.
        let whole = if plain.len() == name.len() {
            name.clone()
        } else {
            format!("x{plain}")
        };
        if !is_dns_name(&whole) || !whole.contains('.') {
            return Err(format!(
                "`{text}` is neither an intake name such as config.datadoghq.com, nor a pattern such as \
                 *-app.agent.datadoghq.com, nor a process such as process:node"
            ));
        }
        Ok(Self::Name(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_patterns_and_processes() {
        for (text, name, process, covered) in [
            ("Config.ddog-gov.com.", "config.ddog-gov.com", None, true),
            ("config.ddog-gov.com", "xconfig.ddog-gov.com", None, false),
            (
                "*-app.agent.ddog-gov.com",
                "7-81-0-app.agent.ddog-gov.com",
                None,
                true,
            ),
            ("*-app.agent.ddog-gov.com", "-app.agent.ddog-gov.com", None, false),
            (
                "*-app.agent.ddog-gov.com",
                "a.b-app.agent.ddog-gov.com",
                None,
                false,
            ),
            ("process:node", "config.ddog-gov.com", Some("node"), true),
            ("process:node", "config.ddog-gov.com", Some("nodejs"), false),
            ("process:node", "node", None, false),
        ] {
            let exception: HttpsException = text.parse().unwrap();
            assert_eq!(
                exception.covers(name, process),
                covered,
                "{text} {name} {process:?}"
            );
            assert_eq!(exception.to_string().parse(), Ok(exception), "{text}");
        }
        for text in [
            "",
            "*",
            "node",
            "a b.c",
            "-x.com",
            "process:",
            "process:sixteen-bytes-xx",
            "https://x.com",
        ] {
            assert!(text.parse::<HttpsException>().is_err(), "{text}");
        }
    }
}
