//! What other processes are called: for reports, and for settings that name processes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// The longest name that a process can have, in bytes: the kernel's TASK_COMM_LEN without its closing 0 (linux/sched.h).
/// Kernel threads show longer ones.
const LONGEST: usize = 15;

/// The inode of the host's pid namespace (PROC_PID_INIT_INO, linux/proc_ns.h, Linux 3.8).
const HOST_NAMESPACE: u64 = 0xefff_fffc;

/// The name of a process of our own pid namespace (`/proc/<pid>/comm`): at most fifteen bytes of printable ASCII, with `?`
/// for every byte that is none. `None` when it is gone, or when `/proc` hides it from us (`hidepid=`).
///
/// A process gives itself its name (`prctl(PR_SET_NAME)`, or by the file that it executes), and the number may be
/// another's by now: it tells people who was there, and proves nothing. No right is needed to read it.
pub fn name(pid: u32) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/comm"))
        .and_then(|file| file.take(64).read_to_end(&mut bytes))
        .ok()?;
    Some(printable(&bytes))
}

/// True when `/proc` hides other users' processes from us (`hidepid=`, the unit's `ProtectProc=`): they have no names then.
pub fn names_are_hidden() -> bool {
    // Every pid namespace has one, and it is nobody's but root's or our own.
    name(1).is_none()
}

/// The kernel writes the name as it is, a line end in it too, and one line end after it.
fn printable(comm: &[u8]) -> String {
    let name = comm.strip_suffix(b"\n").unwrap_or(comm);
    name.iter()
        .take(LONGEST)
        .map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect()
}

/// True when we live in the host's pid namespace, so that a number which the kernel counts there means the same process to
/// us. Where we cannot tell, it is not.
pub fn in_host_namespace() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    // A process may look at itself, whatever it has given up. It never changes its own pid namespace.
    *ANSWER.get_or_init(|| {
        fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == HOST_NAMESPACE)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_are_printable_and_short() {
        for (comm, expected) in [
            (&b"trace-agent\n"[..], "trace-agent"),
            (b"a b\n", "a b"),
            (b"\n", ""),
            (b"", ""),
            (b"no line end", "no line end"),
            (b"two\nlines\n\n", "two?lines?"),
            (b"\x1b[2J\x00\x7f\n", "?[2J??"),
            (b"\xff\xc3\xa9\xe2\x80\xae\n", "??????"),
            (b"kworker/u8:3-events_unbound\n", "kworker/u8:3-ev"),
        ] {
            assert_eq!(printable(comm), expected, "{comm:?}");
        }
    }

    #[test]
    fn a_process_is_called_as_what_it_executes() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("odd\n\u{1b}[31m name, long");
        symlink("/bin/sleep", &program).unwrap();
        let mut child = Command::new(&program)
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // spawn() may return before the child executes it: until then it has our name.
        let expected = Some("odd??[31m name,");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            let found = name(child.id());
            if found.as_deref() == expected || std::time::Instant::now() > deadline {
                break found;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.as_deref(), expected);
        assert_eq!(name(child.id()), None, "it is gone");
        assert_eq!(name(0), None);
        assert_eq!(name(u32::MAX), None);
    }
}
