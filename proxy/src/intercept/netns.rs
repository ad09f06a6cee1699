//! Network namespaces: who they are, and work inside of them on a thread of its own.

use std::any::Any;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::sys;
use crate::signals;

/// Which network namespace: what the kernel calls it, whatever path leads there. Both numbers are unique while the
/// namespace lives; a [`Namespace`] keeps it alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespaceId {
    /// `st_dev` of its nsfs file.
    pub device: u64,
    /// `st_ino` of its nsfs file: the number in `net:[..]`.
    pub inode: u64,
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// An open network namespace. It lives for as long as this value, also without a process or a path.
#[derive(Debug)]
pub struct Namespace {
    id: NamespaceId,
    file: File,
}

impl Namespace {
    /// Opens the network namespace at a path, as of `/run/netns` or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// The path cannot be opened, or is something else than a network namespace (`InvalidInput`).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("namespace {}: {error}", path.display()));
        // Without blocking: the path may turn out to be a pipe that nobody writes to.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(named)?;
        Self::from_file(file).map_err(named)
    }

    /// The network namespace of a process.
    ///
    /// # Errors
    /// No such process, or no right to look at it (CAP_SYS_PTRACE for another user's).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Which one it is.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Its open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same namespace, opened once more.
    ///
    /// # Errors
    /// No free descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            id: self.id,
            file: self.file.try_clone()?,
        })
    }

    fn from_file(file: File) -> io::Result<Self> {
        if !sys::is_network_namespace(&file)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is no network namespace",
            ));
        }
        let metadata = file.metadata()?;
        let id = NamespaceId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok(Self { id, file })
    }
}

/// One thread that enters network namespaces, works there, and comes back. No other thread of the process ever leaves
/// its own.
#[derive(Debug)]
pub struct NamespaceThread {
    home: Namespace,
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

struct Job {
    namespace: Namespace,
    /// Called with the result of entering; works only when that is good, and sends the answer.
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl NamespaceThread {
    /// Starts it; home is the network namespace of the caller.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start() -> io::Result<Self> {
        let home = Namespace::own()?;
        let worker = Worker::start(&home)?;
        Ok(Self {
            home,
            worker: Mutex::new(Some(worker)),
        })
    }

    /// Runs `work` in a network namespace and returns what it returned. One at a time: callers wait for each other.
    ///
    /// When the thread cannot come home it ends, so that nothing ever runs in a wrong namespace; the next call starts a
    /// new one. So does a panic of `work`, where panics unwind.
    ///
    /// # Errors
    /// The namespace could not be entered (needs CAP_SYS_ADMIN), or `work` panicked.
    pub fn run<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        let id = namespace.id();
        let job = Job {
            namespace: namespace.try_clone()?,
            work: Box::new(move |entered| {
                let result = entered
                    .map_err(|error| io::Error::new(error.kind(), format!("cannot enter {id}: {error}")))
                    .and_then(|()| {
                        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
                            io::Error::other(format!("a job in {id} panicked: {}", message(panic.as_ref())))
                        })
                    });
                // The caller waits for exactly this.
                let _ = answer.send(result);
            }),
        };
        let mut worker = self.lock();
        let current = match worker.take() {
            Some(current) if !current.thread.is_finished() => current,
            ended => {
                drop(ended.map(|worker| worker.thread.join()));
                Worker::start(&self.home)?
            }
        };
        let sent = current.jobs.send(job);
        *worker = Some(current);
        sent.map_err(|_| lost(id))?;
        answered.recv().map_err(|_| lost(id))?
    }

    fn lock(&self) -> MutexGuard<'_, Option<Worker>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NamespaceThread {
    fn drop(&mut self) {
        let worker = self.lock().take();
        if let Some(Worker { jobs, thread }) = worker {
            drop(jobs);
            // It cannot have panicked: jobs are caught.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn start(home: &Namespace) -> io::Result<Self> {
        let home = home.try_clone()?;
        let (jobs, received) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || {
                signals::leave_to_the_first_thread();
                serve(&home, &received);
            })?;
        Ok(Self { jobs, thread })
    }
}

/// The thread: it ends when its owner does, or when it cannot come home.
fn serve(home: &Namespace, jobs: &Receiver<Job>) {
    // A thread starts where the one that made it is, which need not be home.
    let mut at_home = enter(home).is_ok();
    for Job { namespace, work } in jobs {
        if !at_home {
            work(Err(io::Error::other("this thread is not in its own namespace")));
            return;
        }
        match enter(&namespace) {
            Ok(()) => work(Ok(())),
            Err(error) => {
                work(Err(error));
                continue;
            }
        }
        at_home = enter(home).is_ok();
        if !at_home {
            tracing::error!(namespace = %home.id(), "cannot return to the own network namespace");
            return;
        }
    }
}

fn enter(namespace: &Namespace) -> io::Result<()> {
    setns(&namespace.file, CloneFlags::CLONE_NEWNET).map_err(Into::into)
}

fn lost(id: NamespaceId) -> io::Error {
    io::Error::other(format!("the thread for work in {id} ended"))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
