//! The step itself: execve(2).

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::execve;

use super::{Copies, State, VARIABLE, write};
use crate::signals;

/// Runs `program` in this process, with the same arguments and these variables. To be called on the first thread: the others end,
/// and a worker whose master's thread ends would follow it. Comes back only when that failed, with nothing changed.
///
/// # Errors
/// What the kernel says.
pub fn exec(
    program: &Path,
    variables: Vec<(OsString, OsString)>,
    state: &State,
    copies: Copies,
) -> io::Result<Infallible> {
    let message = write(state)?;
    let path = CString::new(program.as_os_str().to_owned().into_vec())?;
    let arguments = std::env::args_os()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut environment = variables
        .into_iter()
        .map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            CString::new(line)
        })
        .collect::<Result<Vec<_>, _>>()?;
    environment.push(CString::new(format!(
        "{VARIABLE}={}:{}",
        std::process::id(),
        message.as_raw_fd()
    ))?);
    signals::hold()?;
    let failed: Errno = match execve(&path, &arguments, &environment) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    signals::take()?;
    drop(copies);
    Err(failed.into())
}
