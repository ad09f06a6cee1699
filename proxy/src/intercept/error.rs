//! What can go wrong on the kernel side, and whose fault it is: the exit code depends on it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

/// Whose fault an [`InterceptError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A privilege is missing: exit code 77.
    Privilege,
    /// The kernel or its set-up lacks something: exit code 69.
    Unsupported,
    /// Neither: exit code 70.
    Internal,
}

/// An operation of the kernel side failed.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The binary was built with `AGENT_FIPS_PROXY_SKIP_EBPF`.
    #[error(
        "this binary was built without its eBPF programs (AGENT_FIPS_PROXY_SKIP_EBPF was set); build it again without \
         that variable, or set intercept.enabled: false"
    )]
    EmptyObject,
    /// The object could not be loaded: maps, relocation.
    #[error("cannot load the eBPF maps (needs CAP_BPF and CAP_NET_ADMIN, kernel 5.10 or newer): {0}{hint}", hint = super::memlock::cure())]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error(
        "cannot load the eBPF program `{program}` on kernel {kernel} (needs CAP_BPF and CAP_NET_ADMIN, before Linux 5.18 \
         CAP_PERFMON too): {source}"
    )]
    Program {
        /// Its name in the object.
        program: &'static str,
        /// The running kernel.
        kernel: String,
        /// Carries the verifier's log.
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error(
        "cannot attach `{program}` to cgroup {cgroup} (bpf_link_create needs CAP_BPF and CAP_NET_ADMIN; EPERM as root \
         means that another program holds this cgroup exclusively, see `bpftool cgroup show`): {source}"
    )]
    Attach {
        /// Its name in the object.
        program: &'static str,
        /// The cgroup, relative to the cgroup2 root.
        cgroup: PathBuf,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The program that picks our listener could not be attached to a network namespace.
    #[error(
        "cannot attach `{program}` to the network namespace (bpf_link_create needs CAP_BPF and CAP_NET_ADMIN): {source}"
    )]
    AttachNetns {
        /// Its name in the object.
        program: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A link could not be pinned.
    #[error("cannot pin a link at {path} (BPF_OBJ_PIN needs CAP_BPF and write access to bpffs): {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Box<aya::pin::PinError>,
    },
    /// A map could not be read or written.
    #[error("cannot {action} the eBPF map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// The object lacks a part: it is not of this version.
    #[error("the embedded eBPF object has no `{0}`; build the binary again from a clean checkout")]
    Missing(&'static str),
    /// A file, directory or mount.
    #[error("cannot {action} {path}: {source}{}", cure(source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call without a path.
    #[error("{call} failed: {source}{}", cure(source))]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A request to the kernel's routing and traffic control.
    #[error("cannot {request} by netlink: {source}{}{}", said(detail), cure(source))]
    Netlink {
        /// What was asked for, as in "list the links".
        request: String,
        /// What the kernel answered, or why its answer could not be read.
        source: io::Error,
        /// The kernel's own words (`NETLINK_EXT_ACK`, kernel 4.12), often empty.
        detail: String,
    },
    /// Our classifier could not be attached to an interface or detached from it.
    #[error(
        "cannot {action} the classifier on ingress of {interface} (needs CAP_BPF and CAP_NET_ADMIN): {source}"
    )]
    Classifier {
        /// What was tried.
        action: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A classifier that is not ours holds our place.
    #[error(
        "interface {interface}: {holder} is already at priority {priority}, handle {handle:#x}; it is not ours and \
         stays. Set intercept.classifier_priority to another number, or intercept.datapath: cgroup"
    )]
    PlaceTaken {
        /// The interface.
        interface: String,
        /// Who it is: program id, name, kind.
        holder: String,
        /// `intercept.classifier_priority`
        priority: u16,
        /// The handle that we would use.
        handle: u32,
    },
    /// Something that interception needs is not there.
    #[error("{0}")]
    Unsupported(String),
    /// A network namespace that is not ready for anybody yet.
    #[error("`lo` is down in its network namespace: it is waited for")]
    LoopbackDown,
    /// A cgroup selector that is not one.
    #[error("intercept.agents.cgroups: {0}")]
    Selector(String),
    /// More than fits the kernel's settings.
    #[error("intercept.ports: {0} ports are selected, at most {max} fit", max = proxy_ebpf::MAX_PORTS)]
    TooManyPorts(usize),
}

impl InterceptError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported(_) | Self::LoopbackDown => ErrorKind::Unsupported,
            Self::EmptyObject | Self::Missing(_) | Self::Selector(_) | Self::TooManyPorts(_) => {
                ErrorKind::Internal
            }
            Self::Program { source, .. } => match program_errno(source) {
                Some(nix::libc::EPERM) => ErrorKind::Privilege,
                // The verifier answers EACCES and EINVAL; E2BIG is its complexity limit.
                _ => ErrorKind::Unsupported,
            },
            Self::PlaceTaken { .. } => ErrorKind::Unsupported,
            other => kind_of(other.errno()),
        }
    }

    /// The first error number of the operating system behind it.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Program { source, .. } | Self::Attach { source, .. } | Self::AttachNetns { source, .. } => {
                program_errno(source)
            }
            // A boxed `ProgramError::IOError` shows the source of its error, not the error itself.
            Self::Classifier { source, .. } => match source.downcast_ref::<ProgramError>() {
                Some(error) => program_errno(error),
                None => root_errno(source.as_ref()),
            },
            other => root_errno(other),
        }
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(super) fn map(action: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map {
            action,
            map,
            source: Box::new(source),
        }
    }
}

fn kind_of(errno: Option<i32>) -> ErrorKind {
    match errno {
        Some(nix::libc::EPERM | nix::libc::EACCES) => ErrorKind::Privilege,
        Some(nix::libc::ENOSYS | nix::libc::EOPNOTSUPP | nix::libc::EINVAL | nix::libc::ENODEV) => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Internal,
    }
}

/// This variant is transparent: it shows the source of its error, not the error itself.
fn program_errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::IOError(error) => error.raw_os_error(),
        other => root_errno(other),
    }
}

/// The first operating system error in the chain: aya's errors carry it as a source.
fn root_errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

fn said(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

fn cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM | nix::libc::EACCES) => {
            " (run as root, or give the service CAP_BPF, CAP_NET_ADMIN and CAP_DAC_OVERRIDE; `agent-fips-proxy doctor` \
             shows what is missing)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(errno: i32) -> InterceptError {
        InterceptError::file("create", "/sys/fs/cgroup/x")(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn kinds_follow_the_errno() {
        assert_eq!(file(nix::libc::EACCES).kind(), ErrorKind::Privilege);
        assert_eq!(file(nix::libc::EOPNOTSUPP).kind(), ErrorKind::Unsupported);
        assert_eq!(file(nix::libc::ENOSPC).kind(), ErrorKind::Internal);
        let program = |errno| InterceptError::Program {
            program: "connect4",
            kernel: "5.10.0".into(),
            source: Box::new(ProgramError::IOError(io::Error::from_raw_os_error(errno))),
        };
        let attach = |errno| InterceptError::Attach {
            program: "connect4",
            cgroup: "/x".into(),
            source: Box::new(ProgramError::SyscallError(aya::sys::SyscallError {
                call: "bpf_link_create",
                io_error: io::Error::from_raw_os_error(errno),
            })),
        };
        assert_eq!(attach(nix::libc::EPERM).kind(), ErrorKind::Privilege);
        assert_eq!(attach(nix::libc::EINVAL).kind(), ErrorKind::Unsupported);
        assert_eq!(program(nix::libc::EPERM).kind(), ErrorKind::Privilege);
        // EACCES from a program load is the verifier's refusal, not a missing privilege.
        assert_eq!(program(nix::libc::EACCES).kind(), ErrorKind::Unsupported);
        assert_eq!(
            InterceptError::Unsupported("no cgroup2".into()).kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn messages_name_path_reason_and_cure() {
        let text = file(nix::libc::EPERM).to_string();
        for part in [
            "cannot create /sys/fs/cgroup/x",
            "not permitted",
            "CAP_BPF",
            "doctor",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
