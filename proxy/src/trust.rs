//! Who on this host trusts the local authority, and how it is told to: what `ca install` writes and `ca uninstall` removes.
//!
//! Which client looks where was measured with the clients themselves (docs/OPERATIONS.md, "The local authority"): Go, Rust
//! and OpenSSL with all that stands on it take `SSL_CERT_FILE` and `SSL_CERT_DIR`; Python's `requests` takes neither and
//! has `REQUESTS_CA_BUNDLE`, Node takes neither and has `NODE_EXTRA_CA_CERTS`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::tls::ca::files::write_file;
use crate::tls::ca::{CaError, Store};

pub mod drop_ins;
pub mod host_store;
pub mod processes;

/// The first line of every file that `ca install` writes where comments are possible: by it we know our own again.
pub const HEADER: &str =
    "# Written by `agent-fips-proxy ca install`; `agent-fips-proxy ca uninstall` removes it.";

/// Where distributions keep the roots in one file, in the order in which Go looks (crypto/x509, root_linux.go).
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A host's files: the running one's, or those of an image below some folder.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// The host whose files begin at `root`; `/` for the running one.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// True for the host that runs us: its service manager and tools can be called.
    pub fn is_running(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a path of that host is for us.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The distribution's roots in one file, as that host names it.
    pub fn distribution_bundle(&self) -> Option<PathBuf> {
        BUNDLES
            .iter()
            .map(PathBuf::from)
            .find(|bundle| self.at(bundle).is_file())
    }
}

/// The files beside the authority that clients are pointed at, by their names on their host.
#[derive(Clone, Debug)]
pub struct Files {
    /// `ca.dir`.
    dir: PathBuf,
    /// The distribution's roots.
    distribution: PathBuf,
}

/// Whether the bundle that we made is still the distribution's and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleState {
    /// There is none.
    Absent,
    /// It holds what it should.
    Current,
    /// The distribution's roots or our authority changed since: `ca install` writes it anew.
    Stale,
}

impl Files {
    /// For the authority in `dir` on the host of `place`.
    ///
    /// # Errors
    /// That host has no roots at all.
    pub fn new(place: &Place, dir: &Path) -> Result<Self, String> {
        let distribution = place.distribution_bundle().ok_or_else(|| {
            format!(
                "no file with the distribution's roots: none of {} is there; install the package ca-certificates",
                BUNDLES.join(", ")
            )
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            distribution,
        })
    }

    /// The distribution's roots and ours in one file.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.pem")
    }

    fn environment(&self) -> PathBuf {
        self.dir.join("environment")
    }

    /// What Agents need: their senders are Go and Rust. They trust what the host trusts, and the local authority.
    pub fn agent_variables(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("SSL_CERT_FILE", self.distribution.clone()),
            ("SSL_CERT_DIR", Store::new(&self.dir).trust_dir()),
        ]
    }

    /// What any client needs.
    pub fn client_variables(&self) -> Vec<(&'static str, PathBuf)> {
        let mut variables = self.agent_variables();
        variables.push(("REQUESTS_CA_BUNDLE", self.bundle()));
        variables.push(("NODE_EXTRA_CA_CERTS", Store::new(&self.dir).authorities_file()));
        variables
    }

    /// Writes the bundle and the environment file; what was written, by its names on that host.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, place: &Place) -> Result<Vec<PathBuf>, CaError> {
        write_file(
            &place.at(self.bundle()),
            self.bundle_text(place)?.as_bytes(),
            0o644,
        )?;
        let mut text = format!(
            "{HEADER}\n# For services and shells of clients that are no Agents: EnvironmentFile=, or `set -a`.\n"
        );
        for (name, value) in self.client_variables() {
            text.push_str(&format!("{name}={}\n", value.display()));
        }
        write_file(&place.at(self.environment()), text.as_bytes(), 0o644)?;
        Ok(vec![self.bundle(), self.environment()])
    }

    /// Removes them; what was removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(place: &Place, dir: &Path) -> Result<Vec<PathBuf>, CaError> {
        ["bundle.pem", "environment"]
            .into_iter()
            .map(|name| dir.join(name))
            .filter(|path| has_header(&place.at(path)))
            .map(|path| {
                let there = place.at(&path);
                fs::remove_file(&there).map_err(CaError::file("remove", there))?;
                Ok(path)
            })
            .collect()
    }

    /// Whether the bundle is what it should be.
    pub fn bundle_state(&self, place: &Place) -> BundleState {
        match fs::read_to_string(place.at(self.bundle())) {
            Err(_) => BundleState::Absent,
            Ok(text) if self.bundle_text(place).is_ok_and(|wanted| wanted == text) => BundleState::Current,
            Ok(_) => BundleState::Stale,
        }
    }

    fn bundle_text(&self, place: &Place) -> Result<String, CaError> {
        let mut text = format!("{HEADER}\n");
        for path in [
            self.distribution.clone(),
            Store::new(&self.dir).authorities_file(),
        ] {
            let path = place.at(path);
            text.push_str(&fs::read_to_string(&path).map_err(CaError::file("read", path))?);
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// True for a file that begins with our header.
fn has_header(path: &Path) -> bool {
    first_line(path).is_ok_and(|line| line == HEADER)
}

fn first_line(path: &Path) -> io::Result<String> {
    use std::io::BufRead;
    let mut line = String::new();
    io::BufReader::new(fs::File::open(path)?).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
