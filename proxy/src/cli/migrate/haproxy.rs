//! What the haproxy-based proxy was told, as far as it has a counterpart here: which port leads to which server.
//!
//! Sources: Datadog's documents, "Agent proxy" and "FIPS proxy" (`frontend` with `bind` and `default_backend`, `backend` with
//! `server` or `server-template`, `listen stats`), and haproxy's configuration manual 2.4, sections 2.2 (quoting) and 2.3
//! (variables).

use std::collections::BTreeMap;

/// What begins a section (haproxy's manual, 2.1 and 4; `resolvers`, `peers` and the like hold nothing for us).
const SECTIONS: [&str; 12] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "resolvers",
    "peers",
    "userlist",
    "mailers",
    "program",
    "cache",
    "ring",
];

/// A port of the old proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// Where it listened; empty for every address.
    pub(super) address: String,
    pub(super) port: u16,
    /// Where it sent.
    pub(super) host: String,
    pub(super) host_port: u16,
}

/// The old proxy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) forwards: Vec<Forward>,
    /// The port of its statistics, which is where the range begins.
    pub(super) stats: Option<u16>,
    /// Roots that are not a distribution's, by their names in its file.
    pub(super) roots: Vec<String>,
    /// Ports that lead nowhere as far as we understand it.
    pub(super) unknown: Vec<u16>,
}

#[derive(Default)]
struct Section {
    binds: Vec<(String, u16)>,
    backend: Option<String>,
    server: Option<(String, u16)>,
    stats: bool,
}

/// Reads the text of its configuration. What is not understood is passed over: nothing here is ever written.
pub(super) fn read(text: &str) -> Old {
    let mut sections: Vec<(String, Section)> = Vec::new();
    let mut variables = BTreeMap::new();
    let mut old = Old::default();
    for line in text.lines() {
        let words = words(line, &variables);
        let Some((first, rest)) = words.split_first() else {
            continue;
        };
        if SECTIONS.contains(&first.as_str()) {
            let name = rest.first().cloned().unwrap_or_default();
            sections.push((name, Section::default()));
            continue;
        }
        if let (true, [name, value]) = (first == "presetenv" || first == "setenv", rest) {
            variables.insert(name.clone(), value.clone());
        }
        if first.starts_with("server") || first == "default-server" {
            old.roots.extend(
                roots(rest)
                    .filter(|root| !old.roots.contains(root))
                    .collect::<Vec<_>>(),
            );
        }
        if let Some((_, section)) = sections.last_mut() {
            section.take(first, rest);
        }
    }
    old.connect(&sections);
    old
}

impl Section {
    fn take(&mut self, first: &str, rest: &[String]) {
        match (first, rest) {
            ("bind", [addresses, ..]) => self.binds.extend(addresses.split(',').filter_map(address)),
            ("default_backend", [name, ..]) => self.backend = Some(name.clone()),
            ("server", [_, address, ..]) => self.add_server(address),
            // server-template <prefix> <number> <address>
            ("server-template", [_, _, address, ..]) => self.add_server(address),
            ("stats", _) => self.stats = true,
            _ => {}
        }
    }

    fn add_server(&mut self, text: &str) {
        if self.server.is_none() {
            self.server = match text.rsplit_once(':') {
                Some((host, port)) => port.parse().ok().map(|port| (host.to_owned(), port)),
                None => Some((text.to_owned(), 443)),
            };
        }
    }
}

impl Old {
    /// Leads every port to its server.
    fn connect(&mut self, sections: &[(String, Section)]) {
        for (_, section) in sections {
            let behind = section.backend.as_ref().and_then(|name| {
                sections
                    .iter()
                    .find(|(other, section)| other == name && section.server.is_some())
                    .map(|(_, section)| section)
            });
            let server = behind.unwrap_or(section).server.as_ref();
            for (address, port) in &section.binds {
                match server {
                    Some((host, host_port)) => self.forwards.push(Forward {
                        address: address.clone(),
                        port: *port,
                        host: host.clone(),
                        host_port: *host_port,
                    }),
                    None if section.stats => self.stats = Some(*port),
                    None => self.unknown.push(*port),
                }
            }
        }
    }
}

/// `address:port`; empty, `*` and the wildcard addresses are every address.
fn address(text: &str) -> Option<(String, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let address = address.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let every = matches!(address, "*" | "0.0.0.0" | "::");
    let address = if every { "" } else { address };
    Some((address.to_owned(), port.parse().ok()?))
}

/// What `ca-file` names, unless it is a distribution's bundle by its name.
fn roots(words: &[String]) -> impl Iterator<Item = String> + '_ {
    words
        .windows(2)
        .filter(|pair| pair[0] == "ca-file")
        .map(|pair| pair[1].clone())
        .filter(|file| {
            ![
                "ca-certificates.crt",
                "ca-bundle.crt",
                "tls-ca-bundle.pem",
                "cacert.pem",
            ]
            .iter()
            .any(|known| file.ends_with(known))
        })
}

/// The words of a line: quotes, backslashes and comments as haproxy has them. A variable that the file does not set is empty, as
/// there.
fn words(line: &str, variables: &BTreeMap<String, String>) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('#', None) => break,
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (_, Some(open)) if letter == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('$', Some('"')) => {
                let braces = letters.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(next) = letters.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
                    name.push(next);
                }
                // ${NAME-default}
                let mut default = String::new();
                if braces {
                    default = letters.by_ref().take_while(|next| *next != '}').collect();
                }
                let value = variables
                    .get(&name)
                    .map_or(default.trim_start_matches('-'), String::as_str);
                word.get_or_insert_default().push_str(value);
            }
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_haproxys() {
        let variables = BTreeMap::from([("A".to_owned(), "127.0.0.1".to_owned())]);
        for (line, expected) in [
            ("  bind \"${A}\":9804 # x", &["bind", "127.0.0.1:9804"][..]),
            ("bind \"$A:9804\"", &["bind", "127.0.0.1:9804"]),
            ("bind \"${B-localhost}\":1", &["bind", "localhost:1"]),
            ("bind \"${B}\":1", &["bind", ":1"]),
            ("a 'b # $A' c\\ d \"\"", &["a", "b # $A", "c d", ""]),
            ("# all", &[]),
        ] {
            assert_eq!(words(line, &variables), expected, "{line}");
        }
    }

    #[test]
    fn ports_lead_to_servers() {
        let old = read(
            "global\n  presetenv HERE localhost\nlisten stats\n  bind \"${HERE}\":9803\n  stats enable\n\
             frontend metrics-forwarder\n  bind *:9804,[::]:9804\n  use_backend datadog-api if { path_beg /api }\n  default_backend datadog-metrics\n\
             frontend broken\n  bind :9805\n  default_backend nobody\n\
             backend datadog-api\n  server-template m 5 api.ddog-gov.com:443 check\n\
             backend datadog-metrics\n  server-template mothership 5 metrics.agent.ddog-gov.com:443 ssl ca-file /opt/gw.pem\n\
             listen logs\n  bind 127.0.0.1:9808\n  server a agent-http-intake.logs.ddog-gov.com ssl ca-file /etc/ssl/certs/ca-certificates.crt\n",
        );
        assert_eq!(old.stats, Some(9803));
        assert_eq!(old.unknown, [9805]);
        assert_eq!(old.roots, ["/opt/gw.pem"]);
        let ports: Vec<(&str, u16, &str)> = old
            .forwards
            .iter()
            .map(|one| (one.address.as_str(), one.port, one.host.as_str()))
            .collect();
        assert_eq!(
            ports,
            [
                ("", 9804, "metrics.agent.ddog-gov.com"),
                ("", 9804, "metrics.agent.ddog-gov.com"),
                ("127.0.0.1", 9808, "agent-http-intake.logs.ddog-gov.com"),
            ]
        );
    }

    #[test]
    fn nothing_makes_it_stumble() {
        for text in [
            "",
            "bind",
            "backend",
            "server",
            "\"",
            "bind x:99999",
            "${",
            "frontend a\nbind \"${",
            "\\",
        ] {
            let _ = read(text);
        }
    }
}
