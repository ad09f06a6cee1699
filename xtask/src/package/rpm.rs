//! The rpm: a spec from the list, and `rpmbuild`. What its scriptlets do is in `proxy/dist/rpm`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::assets::{In, Kind};
use super::stage::{Staged, lay_out};
use super::{DESCRIPTION, Job, MAINTAINER, NAME, SUMMARY, date, script, tool, write};
use crate::sh;

/// Scriptlet in the spec, and its file.
const SCRIPTS: &[(&str, &str)] = &[
    ("%post", "rpm/post"),
    ("%preun", "rpm/preun"),
    ("%postun", "rpm/postun"),
];
/// Folders that are ours alone: they go with the package when they are empty.
const FOLDERS: &[&str] = &[
    "etc/agent-fips-proxy",
    "usr/share/agent-fips-proxy",
    "usr/share/agent-fips-proxy/grafana",
    "usr/share/agent-fips-proxy/prometheus",
    "usr/share/doc/agent-fips-proxy",
    "usr/share/doc/agent-fips-proxy/docs",
    "usr/share/doc/agent-fips-proxy/docs/reference",
    "usr/share/licenses/agent-fips-proxy",
];

/// Makes it.
pub fn make(job: &Job) -> Result<PathBuf> {
    let root = job.output.join("rpm");
    let files = lay_out(job, In::Rpm, &root)?;
    let spec = job.output.join(format!("made/{NAME}.spec"));
    write(&spec, text(job, &root, &files)?)?;
    let top = job.output.join("rpmbuild");
    let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
    let mut command = tool(job, "rpmbuild");
    command.arg("-bb").arg("--quiet").arg(&spec);
    for (name, value) in [
        ("_topdir", top.to_string_lossy().as_ref()),
        // Of this machine nothing may show.
        ("_buildhost", "localhost"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        // rpm's defaults depend on the machine; every rpm since 4.14 reads this.
        ("_binary_payload", if job.trial { "w1.xzdio" } else { "w9.xzdio" }),
        // Stripped and compressed already, the same as in the other package.
        ("__os_install_post", "%{nil}"),
        ("_build_id_links", "none"),
        ("debug_package", "%{nil}"),
    ] {
        command.args(define(name, value));
    }
    sh::run(&mut command)?;
    let built = sh::output(tool(job, "find").arg(top.join("RPMS")).args(["-name", "*.rpm"]))?;
    let built = PathBuf::from(built.trim());
    let name = built.file_name().context("rpmbuild left no package")?;
    let package = job.output.join(name);
    std::fs::rename(&built, &package)?;
    Ok(package)
}

fn text(job: &Job, root: &Path, files: &[Staged]) -> Result<String> {
    let mut text = format!(
        "Name: {NAME}\nVersion: {}\nRelease: {}\nSummary: {}\nLicense: Apache-2.0\nGroup: System Environment/Daemons\nVendor: {NAME}\nPackager: {MAINTAINER}\n\
         Requires(post): systemd\nRequires(preun): systemd\nRequires(postun): systemd\nRequires: ca-certificates\n\
         %description\n{}\n%install\ncp -a {}/. %{{buildroot}}\n",
        job.version,
        job.revision,
        capital(SUMMARY),
        DESCRIPTION.join("\n"),
        root.display(),
    );
    for (name, file) in SCRIPTS {
        // The first line says which shell; rpm takes its own.
        let whole = script(file)?;
        let body = whole.split_once('\n').map_or("", |(_, body)| body);
        write!(text, "\n{name}\n{}", body.replace('%', "%%"))?;
    }
    text += "\n%files\n%defattr(0644, root, root, 0755)\n";
    for folder in FOLDERS.iter().filter(|folder| root.join(folder).is_dir()) {
        writeln!(text, "%dir /{folder}")?;
    }
    for file in files {
        let words = match (file.kind, file.path.as_str()) {
            (_, path) if path.starts_with("usr/bin/") => "%attr(0755, root, root) ",
            (Kind::Config, _) => "%config(noreplace) ",
            (Kind::Doc, _) => "%doc ",
            (Kind::Licence, _) => "%license ",
            (Kind::Plain, _) => "",
        };
        writeln!(text, "{words}\"/{}\"", file.path)?;
    }
    writeln!(
        text,
        "\n%changelog\n* {} {MAINTAINER} - {version}-{}\n- Packaged from the sources of version {version}: see CHANGELOG.md.",
        date(job.epoch, "+%a %b %d %Y")?,
        job.revision,
        version = job.version,
    )?;
    Ok(text)
}

/// rpm's summaries begin with a capital letter, dpkg's do not.
fn capital(text: &str) -> String {
    let (first, rest) = text.split_at(1);
    first.to_ascii_uppercase() + rest
}
