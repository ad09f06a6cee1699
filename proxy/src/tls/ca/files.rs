//! Writing files and folders so that they are whole, lasting, and no more open than they should be.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::libc;
use nix::unistd::Uid;

use super::error::CaError;
use crate::owner::is_trusted;

/// Makes a folder that everybody may enter, and those above it.
///
/// # Errors
/// What the system says.
pub(crate) fn make_folder(folder: &Path) -> Result<(), CaError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above)?;
    }
    match DirBuilder::new().mode(0o755).create(folder) {
        Ok(()) => open_folder(folder).and_then(|made| {
            belong_to_the_folder(&made, folder)?;
            made.set_permissions(Permissions::from_mode(0o755))
        }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(CaError::file("make the folder", folder))
}

/// Writes a file so that it is there whole or not at all, also after a power cut: aside, synchronised, renamed. The mode
/// does not depend on the umask, and is right before the first byte.
///
/// # Errors
/// What the system says; nothing is left behind.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let aside = path.with_file_name(name);
    // Left by a writer that died.
    let _ = fs::remove_file(&aside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| {
            belong_to_the_folder(&file, &aside)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&aside, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&aside);
        return Err(CaError::file("write", path)(error));
    }
    path.parent().map_or(Ok(()), sync_folder)
}

/// What root makes in a folder of the master's user is that user's: the master must be able to read it, and to replace it.
pub(super) fn belong_to_the_folder(made: &File, path: &Path) -> io::Result<()> {
    let Some(above) = path.parent().filter(|_| Uid::effective().is_root()) else {
        return Ok(());
    };
    let (above, made_as) = (fs::metadata(above)?, made.metadata()?);
    if above.uid() == 0 || above.uid() == made_as.uid() || !is_trusted(above.uid()) {
        return Ok(());
    }
    // That user may have put something else there, to be given it.
    if made_as.is_file() && made_as.nlink() != 1 {
        return Err(io::Error::other("it has another name, too"));
    }
    fchown(made, Some(above.uid()), Some(above.gid()))
}

fn open_folder(folder: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(folder)
}

/// Makes a rename last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), CaError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(CaError::file("synchronise", folder))
}
