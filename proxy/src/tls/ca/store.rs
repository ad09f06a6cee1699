//! The folder of the local authority (`ca.dir`): who writes, what is in it, and how it changes without a moment in which
//! it is half of one thing and half of another.
//!
//! ```text
//! lock                one writer at a time
//! state.json          which authority is current, which is next; changed by one rename
//! <id>.pem <id>.key   certificate (0644) and key (0600) of each
//! trust/              what Agents are pointed at (SSL_CERT_DIR): certificates only
//! authorities.pem     the same certificates in one file
//! ```

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::certificate::{Certificate, Facts};
use super::error::CaError;
use super::files::{belong_to_the_folder, make_folder, sync_folder, write_file};
use super::open::{OpenAuthority, Role};
use super::{make, trust_folder};
use crate::owner::is_trusted;

/// How long a command waits for another one that holds the lock. Making a key takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `state.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The layout of this file and folder.
    version: u32,
    current: Entry,
    next: Option<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Names its files.
    id: String,
    /// When it was put into the trust folder, in seconds since 1970.
    published: i64,
}

/// An authority of the folder without its key: for `ca show`, and for everybody who may not read the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Which one.
    pub role: Role,
    /// Its certificate's file.
    pub path: PathBuf,
    /// What it says.
    #[serde(flatten)]
    pub facts: Facts,
    /// When it was put into the trust folder, in seconds since 1970. A process that started earlier does not trust it.
    pub published: i64,
    /// The certificate, PEM.
    #[serde(skip)]
    pub pem: String,
}

impl Published {
    /// The operator's own, from the text of `ca.certificate_file`. It was never published: Agents trust its root already.
    ///
    /// # Errors
    /// No certificate.
    pub fn supplied(path: &Path, pem: String) -> Result<Self, CaError> {
        let facts = Certificate::read_pem(pem.as_bytes())
            .map_err(|problem| CaError::malformed(path, problem))?
            .remove(0)
            .facts;
        Ok(Self {
            role: Role::Supplied,
            path: path.to_owned(),
            facts,
            published: 0,
            pem,
        })
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The folder `ca.dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// True when an authority is there.
    pub fn exists(&self) -> bool {
        self.state_file().exists()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder with certificates only: what `SSL_CERT_DIR` names.
    pub fn trust_dir(&self) -> PathBuf {
        self.dir.join("trust")
    }

    /// The same certificates in one file, for clients that take no folder.
    pub fn authorities_file(&self) -> PathBuf {
        self.dir.join("authorities.pem")
    }

    /// Opens certificate and key of the current and, during a rotation, of the next authority; reads neither.
    ///
    /// # Errors
    /// [`CaError::None`], a folder that others may write to, or what the system says.
    pub fn open(&self) -> Result<Vec<OpenAuthority>, CaError> {
        self.guarded()?;
        let mut tries = 0;
        loop {
            let state = self.state()?;
            let opened: Result<Vec<_>, _> = state
                .entries()
                .map(|(role, entry)| {
                    OpenAuthority::open(
                        role,
                        self.certificate_file(&entry.id),
                        self.key_file(&entry.id),
                        false,
                    )
                })
                .collect();
            tries += 1;
            match opened {
                // A rotation may have ended between the state and the files: then the state says so now.
                Err(_) if tries < 3 && self.state()? != state => {}
                result => return result,
            }
        }
    }

    /// The certificates, for everybody.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn published(&self) -> Result<Vec<Published>, CaError> {
        self.guarded()?;
        self.state()?
            .entries()
            .map(|(role, entry)| {
                let path = self.certificate_file(&entry.id);
                let pem = fs::read_to_string(&path).map_err(CaError::file("read", &path))?;
                let facts = Certificate::read_pem(pem.as_bytes())
                    .map_err(|problem| CaError::malformed(&path, problem))?
                    .remove(0)
                    .facts;
                Ok(Published {
                    role,
                    path,
                    facts,
                    published: entry.published,
                    pem,
                })
            })
            .collect()
    }

    /// Makes the first authority, publishes it in the trust folder. With `replace` one that is there, and its next one, are
    /// thrown away.
    ///
    /// # Errors
    /// [`CaError::Exists`] without `replace`, [`CaError::Busy`], what the system or the module says.
    pub fn init(&self, wanted: &Wanted<'_>, replace: bool) -> Result<Facts, CaError> {
        self.make_folders()?;
        let _lock = self.lock()?;
        if self.exists() && !replace {
            return Err(CaError::Exists(self.dir.clone()));
        }
        let entry = self.make(wanted)?;
        self.write_state(&State {
            version: 1,
            current: entry,
            next: None,
        })?;
        self.publish()?;
        self.facts_of(Role::Current)
    }

    /// Makes the next authority and publishes it beside the current one, which goes on to sign.
    ///
    /// # Errors
    /// As [`Store::init`]; [`CaError::Rotation`] when a rotation is under way.
    pub fn rotate(&self, wanted: &Wanted<'_>) -> Result<Facts, CaError> {
        self.guarded()?;
        let _lock = self.lock()?;
        let state = self.state()?;
        if let Some(next) = &state.next {
            return Err(CaError::Rotation(format!(
                "a rotation is under way: the next authority ({}) was published at {}. Restart the Agents that have not \
                 been since (`agent-fips-proxy ca show` names them), then `agent-fips-proxy ca rotate --finish`",
                next.id,
                super::moment(next.published)
            )));
        }
        let next = self.make(wanted)?;
        self.write_state(&State {
            next: Some(next),
            ..state
        })?;
        self.publish()?;
        self.facts_of(Role::Next)
    }

    /// Makes the next authority the current one and forgets the old one: its key and certificate are removed.
    ///
    /// # Errors
    /// [`CaError::Rotation`] when no rotation is under way; as [`Store::init`].
    pub fn finish(&self) -> Result<Facts, CaError> {
        self.guarded()?;
        let _lock = self.lock()?;
        let state = self.state()?;
        let Some(next) = state.next else {
            return Err(CaError::Rotation(
                "no rotation is under way: `agent-fips-proxy ca rotate` begins one".to_owned(),
            ));
        };
        self.write_state(&State {
            version: state.version,
            current: next,
            next: None,
        })?;
        self.publish()?;
        self.facts_of(Role::Current)
    }

    /// Makes the trust folder what the state says, and removes files of authorities that are no more. Also puts right what
    /// a command that died in the middle left behind.
    fn publish(&self) -> Result<(), CaError> {
        let published = self.published()?;
        trust_folder::write(&self.trust_dir(), &published)?;
        let all: String = published.iter().map(|one| one.pem.as_str()).collect();
        write_file(&self.authorities_file(), all.as_bytes(), 0o644)?;
        let entries = fs::read_dir(&self.dir).map_err(CaError::file("read", &self.dir))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let ours = path
                .extension()
                .is_some_and(|kind| kind == "pem" || kind == "key")
                && path.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_id);
            let live = published
                .iter()
                .any(|live| path.file_stem().is_some_and(|stem| stem == live.facts.id()));
            if ours && !live {
                fs::remove_file(&path).map_err(CaError::file("remove", &path))?;
            }
        }
        sync_folder(&self.dir)
    }

    fn facts_of(&self, role: Role) -> Result<Facts, CaError> {
        self.published()?
            .into_iter()
            .find(|one| one.role == role)
            .map(|one| one.facts)
            .ok_or_else(|| CaError::None(self.dir.clone()))
    }

    /// Key first: a certificate without a key would look like a whole authority.
    fn make(&self, wanted: &Wanted<'_>) -> Result<Entry, CaError> {
        let made = make::authority(wanted.host, wanted.domains, wanted.days, wanted.now)?;
        let id = made.facts.id().to_owned();
        write_file(&self.key_file(&id), made.key.as_bytes(), 0o600)?;
        write_file(&self.certificate_file(&id), made.certificate.as_bytes(), 0o644)?;
        Ok(Entry {
            id,
            published: wanted.now,
        })
    }

    fn state(&self) -> Result<State, CaError> {
        let path = self.state_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CaError::None(self.dir.clone()));
            }
            Err(error) => return Err(CaError::file("read", path)(error)),
        };
        let state: State = serde_json::from_slice(&text).map_err(|error| {
            CaError::malformed(
                &path,
                format!(
                    "it is not what we wrote ({error}); restore it, or `agent-fips-proxy ca init --replace`"
                ),
            )
        })?;
        if state.version != 1 || !state.entries().all(|(_, entry)| is_id(&entry.id)) {
            return Err(CaError::malformed(
                &path,
                "another version of this program wrote it; use that version, or `agent-fips-proxy ca init --replace`",
            ));
        }
        Ok(state)
    }

    fn write_state(&self, state: &State) -> Result<(), CaError> {
        let mut text = serde_json::to_vec_pretty(state).map_err(CaError::crypto("write the state"))?;
        text.push(b'\n');
        write_file(&self.state_file(), &text, 0o644)
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    fn certificate_file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.pem"))
    }

    fn key_file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.key"))
    }

    /// Agents of any user read the certificates: the umask of a service must not keep them out.
    fn make_folders(&self) -> Result<(), CaError> {
        for folder in [self.dir.clone(), self.trust_dir()] {
            make_folder(&folder)?;
        }
        self.guarded()
    }

    /// Whoever may write to the folder could put another key into it.
    fn guarded(&self) -> Result<(), CaError> {
        let metadata = match fs::metadata(&self.dir) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CaError::None(self.dir.clone()));
            }
            Err(error) => return Err(CaError::file("look at", &self.dir)(error)),
        };
        let refuse = |problem: String, cure: String| {
            Err(CaError::Permissions {
                path: self.dir.clone(),
                problem,
                cure,
            })
        };
        if metadata.mode() & 0o022 != 0 {
            return refuse(
                format!(
                    "may be written by others (mode {:04o}), who could put another authority into it",
                    metadata.mode() & 0o7777
                ),
                format!("`chmod go-w {}`", self.dir.display()),
            );
        }
        if nix::unistd::Uid::effective().is_root() && !is_trusted(metadata.uid()) {
            return refuse(
                format!(
                    "belongs to the user {}, who could put another authority into it",
                    metadata.uid()
                ),
                format!("`chown root {}`", self.dir.display()),
            );
        }
        Ok(())
    }

    fn lock(&self) -> Result<Flock<File>, CaError> {
        let path = self.dir.join("lock");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // The folder may be the master's user's, who must not lead root elsewhere.
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| belong_to_the_folder(&file, &path).map(|()| file))
            .map_err(CaError::file("open", &path))?;
        let start = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, nix::errno::Errno::EWOULDBLOCK)) if start.elapsed() < PATIENCE => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(CaError::Busy(self.dir.clone())),
                Err((_, error)) => return Err(CaError::file("lock", path)(error.into())),
            }
        }
    }
}

/// What a new authority is for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The host's name, for the subject.
    pub host: &'a str,
    /// What it may sign for.
    pub domains: &'a [String],
    /// Days of validity.
    pub days: u16,
    /// Now, in seconds since 1970.
    pub now: i64,
}

impl State {
    fn entries(&self) -> impl Iterator<Item = (Role, &Entry)> {
        std::iter::once((Role::Current, &self.current)).chain(self.next.iter().map(|next| (Role::Next, next)))
    }
}

/// 16 digits of a fingerprint: never a path.
fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
