//! The first file system of a test kernel: busybox, the modules that reach the share, and our `init`.
//!
//! An archive in the `newc` format of cpio, which the kernel unpacks into memory (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::fetch::{Tools, Unpacked};
use crate::sh;

/// What the share, the file system over it and the clock of random numbers need.
const MODULES: &[&str] = &["virtio_pci", "virtio-rng", "virtiofs", "overlay"];

/// Builds the archive for one run; `run` is the run's folder as the guest will see it.
pub fn build(tools: &Tools, kernel: &Unpacked, run: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules"] {
        archive.entry(folder, 0o040_755, &[])?;
    }
    let busybox = busybox(tools)?;
    archive.entry("bin/busybox", 0o100_755, &std::fs::read(&busybox)?)?;
    let mut order = String::new();
    for path in modules(tools, kernel)? {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module without a name")?;
        let plain = name.trim_end_matches(".xz").trim_end_matches(".zst");
        archive.entry(&format!("modules/{plain}"), 0o100_644, &module(&path)?)?;
        order.push_str(plain);
        order.push('\n');
    }
    archive.entry("modules/order", 0o100_644, order.as_bytes())?;
    let init = include_str!("init.sh").replace("@RUN@", &run.display().to_string());
    archive.entry("init", 0o100_755, init.as_bytes())?;
    archive.finish()
}

/// busybox of the tools.
pub fn busybox(tools: &Tools) -> Result<PathBuf> {
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|inside| tools.path(inside))
        .find(|path| path.is_file())
        .context("busybox-static brings no busybox")
}

/// The files of the modules and of what they need, in the order of loading.
fn modules(tools: &Tools, kernel: &Unpacked) -> Result<Vec<PathBuf>> {
    let root = kernel
        .modules
        .parent()
        .and_then(Path::parent)
        .context("lib/modules has no root")?;
    let mut files = Vec::new();
    for module in MODULES {
        let mut command = tools.command("bin/modprobe");
        command
            .arg("-d")
            .arg(root)
            .args(["-S", &kernel.release, "--show-depends", module]);
        // Newer packages do not list what is built in. Should it be missing indeed, the guest says that it has no share.
        let listed = match sh::output(&mut command) {
            Err(error) if format!("{error:#}").contains("not found in directory") => continue,
            listed => listed?,
        };
        for line in listed.lines() {
            // The other kind of line is `builtin NAME`.
            if let Some(path) = line.trim().strip_prefix("insmod ") {
                let path = PathBuf::from(path.trim());
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
    }
    Ok(files)
}

/// A module as busybox can load it.
fn module(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return std::fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} -dc {}: {}",
        path.display(),
        output.status
    );
    Ok(output.stdout)
}

/// A cpio archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends a file or a folder; the kind is part of `mode`, as in `st_mode`.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for cpio"))?;
        let length = u32::try_from(name.len() + 1)?;
        // inode, mode, uid, gid, links, mtime, size, device twice, device number twice, name length, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_of_newc() {
        let mut archive = Archive::default();
        archive.entry("a/b", 0o100_644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // Header of 110 bytes, name with its zero to a multiple of 4, content likewise.
        assert!(text.starts_with("07070100000001000081A4"), "{text}");
        assert_eq!(&bytes[110..114], b"a/b\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(text.contains("TRAILER!!!") && bytes.len() % 4 == 0);
    }
}
