//! Kernels of Debian and the emulator that runs them, unpacked below `target/kernels`: nothing is installed.
//!
//! Everything comes through apt with source lists of our own, so that the archive's signatures and the packages' digests
//! are checked and the machine's own lists stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// A kernel that can be asked for.
pub struct Kernel {
    /// What `--kernel` takes.
    pub name: &'static str,
    /// The suite of Debian that has it.
    suite: &'static str,
    /// Whether that is a suite of the security archive.
    security: bool,
    /// How the version in the package's name begins.
    version: &'static str,
}

/// The oldest kernel that interception supports (5.10), the stable ones, and the newest there is. The `cloud` flavour:
/// small, and it has what a node needs.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        name: "5.10",
        suite: "bullseye-security",
        security: true,
        version: "5.10.",
    },
    Kernel {
        name: "6.1",
        suite: "bookworm-security",
        security: true,
        version: "6.1.",
    },
    Kernel {
        name: "6.12",
        suite: "bookworm-security",
        security: true,
        version: "6.12.",
    },
    Kernel {
        name: "latest",
        suite: "sid",
        security: false,
        version: "",
    },
];

/// The end of a package's name: flavour and architecture.
const FLAVOUR: &str = "-cloud-amd64";
/// Written when a folder is complete.
const READY: &str = ".ready";

/// An unpacked kernel.
pub struct Unpacked {
    /// The image to boot.
    pub image: PathBuf,
    /// `lib/modules`, indexed.
    pub modules: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// Package and version.
    pub package: String,
}

/// The emulator, the file server and the module tools.
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Unpacks them on first use.
    pub fn get() -> Result<Self> {
        let folder = folder().join("tools");
        let root = folder.join("root");
        if !folder.join(READY).is_file() {
            eprintln!(
                "kernel: unpacking qemu, kmod and busybox below {}",
                folder.display()
            );
            renew(&folder)?;
            let debs = folder.join("debs");
            std::fs::create_dir_all(debs.join("partial"))?;
            // The libraries that the machine lacks come along; the others are its own.
            let mut apt = sh::command("apt-get");
            apt.args([
                "install",
                "--download-only",
                "-y",
                "-qq",
                "--no-install-recommends",
            ])
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", debs.display()))
            .args(["qemu-system-x86", "kmod"])
            .env("DEBIAN_FRONTEND", "noninteractive");
            sh::run(&mut apt).context("cannot download qemu; `apt-get update` may be needed")?;
            // Never installed here, whatever the machine has: these two are used from the folder.
            sh::run(
                sh::command("apt-get")
                    .args(["download", "-qq", "busybox-static"])
                    .current_dir(&debs),
            )?;
            unpack(&debs, &root)?;
            // kmod is what its name says when it is called by another.
            for name in ["modprobe", "depmod"] {
                std::os::unix::fs::symlink("kmod", root.join("bin").join(name))
                    .with_context(|| format!("cannot link {name}"))?;
            }
            std::fs::remove_dir_all(&debs)?;
            std::fs::write(folder.join(READY), "")?;
        }
        Ok(Self { root })
    }

    /// A program of ours with the libraries beside it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = sh::command(self.path(program));
        command.env("LD_LIBRARY_PATH", self.libraries());
        command
    }

    /// Where a file of the packages is.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// For `LD_LIBRARY_PATH`.
    pub fn libraries(&self) -> String {
        let below = self.root.display();
        format!("{below}/usr/lib/x86_64-linux-gnu:{below}/lib/x86_64-linux-gnu")
    }
}

impl Kernel {
    /// Downloads and unpacks it on first use.
    pub fn get(&self, tools: &Tools) -> Result<Unpacked> {
        let folder = folder().join(self.name);
        let root = folder.join("root");
        if !folder.join(READY).is_file() {
            eprintln!("kernel: fetching {} from Debian {}", self.name, self.suite);
            renew(&folder)?;
            let apt = Apt::new(&folder, self)?;
            let package = apt.newest(self.version)?;
            let debs = folder.join("debs");
            std::fs::create_dir_all(&debs)?;
            let wanted = apt.with_parts(&package)?;
            sh::run(
                apt.command("apt-get")
                    .args(["download", "-qq"])
                    .args(&wanted)
                    .current_dir(&debs),
            )?;
            unpack(&debs, &root)?;
            std::fs::remove_dir_all(&debs)?;
            // Newer packages have no /lib of their own.
            if !root.join("lib").exists() {
                std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
            }
            let release = release(&root)?;
            sh::run(tools.command("bin/depmod").arg("-b").arg(&root).arg(&release))?;
            let version = apt.version(&package)?;
            apt.forget()?;
            std::fs::write(folder.join(READY), format!("{package} {version}"))?;
        }
        let release = release(&root)?;
        let image = [
            root.join(format!("boot/vmlinuz-{release}")),
            root.join(format!("lib/modules/{release}/vmlinuz")),
        ]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| {
            format!(
                "no kernel image below {}; remove the folder to fetch it again",
                root.display()
            )
        })?;
        Ok(Unpacked {
            image,
            modules: root.join("lib/modules"),
            release,
            package: std::fs::read_to_string(folder.join(READY))?,
        })
    }
}

/// Where all of it lies.
pub fn folder() -> PathBuf {
    build::target().join("kernels")
}

/// apt with one suite and state of its own.
struct Apt {
    options: Vec<String>,
    state: PathBuf,
}

impl Apt {
    fn new(folder: &Path, kernel: &Kernel) -> Result<Self> {
        let state = folder.join("apt");
        std::fs::create_dir_all(state.join("lists/partial"))?;
        std::fs::create_dir_all(state.join("cache"))?;
        let archive = if kernel.security {
            "debian-security"
        } else {
            "debian"
        };
        let list = state.join("sources.list");
        let line = format!(
            "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {} main\n",
            mirror(archive),
            kernel.suite
        );
        std::fs::write(&list, line)?;
        let this = Self {
            options: [
                format!("Dir::Etc::sourcelist={}", list.display()),
                "Dir::Etc::sourceparts=/dev/null".to_owned(),
                // Pins of the machine are about its own packages.
                "Dir::Etc::preferences=/dev/null".to_owned(),
                "Dir::Etc::preferencesparts=/dev/null".to_owned(),
                format!("Dir::State::lists={}", state.join("lists").display()),
                format!("Dir::Cache={}", state.join("cache").display()),
                "APT::Sandbox::User=root".to_owned(),
            ]
            .into(),
            state,
        };
        sh::run(this.command("apt-get").args(["update", "-qq"]))
            .with_context(|| format!("cannot read the package list of Debian {}", kernel.suite))?;
        Ok(this)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// The package with the newest kernel whose version begins so.
    fn newest(&self, version: &str) -> Result<String> {
        let names = sh::output(self.command("apt-cache").args(["pkgnames", "linux-"]))?;
        let mut found: Vec<&str> = names
            .lines()
            .filter(|name| {
                // `linux-image-` is the signed kernel; where the signing is a package apart, `linux-binary-` is the kernel.
                let rest = name
                    .strip_prefix("linux-binary-")
                    .or_else(|| name.strip_prefix("linux-image-"));
                rest.and_then(|rest| rest.strip_suffix(FLAVOUR))
                    .is_some_and(|middle| {
                        middle.starts_with(|c: char| c.is_ascii_digit()) && middle.starts_with(version)
                    })
            })
            .collect();
        found.sort_by_key(|name| (numbers(name), name.starts_with("linux-binary-")));
        let newest = found
            .last()
            .with_context(|| format!("no kernel {version}* for {FLAVOUR}"))?;
        Ok((*newest).to_owned())
    }

    /// The package and those that hold its modules.
    fn with_parts(&self, package: &str) -> Result<Vec<String>> {
        let depends = sh::output(
            self.command("apt-cache")
                .args(["depends", "--important", package]),
        )?;
        let parts = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-modules-") || name.starts_with("linux-binary-"));
        let mut all: Vec<String> = parts.map(str::to_owned).collect();
        // A kernel without its image in it brings its modules by name alone.
        if let Some(rest) = package.strip_prefix("linux-binary-") {
            all.push(format!("linux-modules-{rest}"));
        }
        all.push(package.to_owned());
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn version(&self, package: &str) -> Result<String> {
        let about = sh::output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions", package]),
        )?;
        let version = about.lines().find_map(|line| line.strip_prefix("Version: "));
        Ok(version.context("apt-cache shows no version")?.to_owned())
    }

    /// Drops the lists: they are larger than the kernel.
    fn forget(self) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.state)?)
    }
}

/// The numbers in a name, for an order in which 10 comes after 9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The address of an archive that this machine uses, or Debian's own.
fn mirror(archive: &str) -> String {
    let mut files: Vec<PathBuf> = std::fs::read_dir("/etc/apt/sources.list.d")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.push("/etc/apt/sources.list".into());
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| {
            text.lines()
                .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
                .flat_map(str::split_whitespace)
                .map(|word| word.trim_end_matches('/'))
                .find(|word| word.starts_with("http") && word.ends_with(&format!("/{archive}")))
                .map(str::to_owned)
        })
        .unwrap_or_else(|| format!("http://deb.debian.org/{archive}"))
}

/// Unpacks every package of a folder.
fn unpack(debs: &Path, root: &Path) -> Result<()> {
    let mut count = 0;
    for entry in std::fs::read_dir(debs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            sh::output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            count += 1;
        }
    }
    if count == 0 {
        bail!("apt-get downloaded nothing into {}", debs.display());
    }
    Ok(())
}

/// An empty folder in place of what a stopped run left.
fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The only release below `lib/modules`.
fn release(root: &Path) -> Result<String> {
    let mut names = std::fs::read_dir(root.join("lib/modules"))
        .with_context(|| format!("no modules below {}", root.display()))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.next().context("no release below lib/modules")
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_ordered_as_numbers() {
        assert!(numbers("linux-image-6.1.0-56-cloud-amd64") > numbers("linux-image-6.1.0-9-cloud-amd64"));
        assert!(
            numbers("linux-image-6.12.117+deb12-cloud-amd64")
                > numbers("linux-image-6.12.94+deb12-cloud-amd64")
        );
    }
}
