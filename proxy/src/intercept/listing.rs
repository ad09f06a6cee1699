//! What stands in the kernel, told as text: programs, links, pins, classifiers, rules and routes. For a support bundle; nothing is
//! changed, and others' things are listed beside ours, because they are what ours are in the way of.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::{loaded_links, loaded_programs};

use super::attach;
use super::error::InterceptError;
use super::host::Cgroup2;
use super::pins::PinDirectory;
use super::tc::{self, Netlink};

/// Objects of one kind that are listed at most.
const MOST: usize = 2000;
/// Folders below each other that are looked into: ours have three.
const DEPTH: usize = 4;

/// Every program and link of the machine, as far as the kernel tells.
///
/// # Errors
/// No right to list them (CAP_SYS_ADMIN).
pub fn bpf() -> Result<String, InterceptError> {
    let mut text = String::from("programs\n");
    let refused = |source: std::io::Error| InterceptError::Call {
        call: "listing the kernel's programs (bpf(BPF_PROG_GET_NEXT_ID), CAP_SYS_ADMIN)",
        source,
    };
    for found in loaded_programs().take(MOST) {
        let program = found.map_err(|error| refused(std::io::Error::other(error.to_string())))?;
        line(
            &mut text,
            &format!(
                "  {:>6}  tag {:016x}  by user {}  {}  {}",
                program.id(),
                program.tag(),
                program
                    .created_by_uid()
                    .map_or_else(|| "?".to_owned(), |uid| uid.to_string()),
                kind(program.program_type()),
                String::from_utf8_lossy(program.name()),
            ),
        );
    }
    text.push_str("\nlinks\n");
    for found in loaded_links().take(MOST) {
        match found {
            Ok(link) => line(
                &mut text,
                &format!(
                    "  {:>6}  program {}  {}",
                    link.id(),
                    link.program_id(),
                    link.link_type()
                        .map_or_else(|_| "?".to_owned(), |kind| format!("{kind:?}")),
                ),
            ),
            // One that went while we looked, or no right: said, and the list goes on no further.
            Err(error) => {
                line(&mut text, &format!("  {error}"));
                break;
            }
        }
    }
    text.push_str("\npins\n");
    match PinDirectory::find() {
        Some(pins) => tree(&mut text, &pins.root(), 0),
        None => text.push_str("  no bpffs is mounted at /sys/fs/bpf, nor one of ours\n"),
    }
    Ok(text)
}

/// As bpf.h names it, without what all names begin with.
fn kind(kind: impl std::fmt::Debug) -> String {
    let name = format!("{kind:?}");
    name.strip_prefix("BPF_PROG_TYPE_").unwrap_or(&name).to_owned()
}

fn tree(text: &mut String, directory: &Path, depth: usize) {
    let indent = "  ".repeat(depth + 1);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            line(text, &format!("{indent}{}: {error}", directory.display()));
            return;
        }
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.into_iter().take(MOST) {
        line(text, &format!("{indent}{}", path.display()));
        if depth < DEPTH && path.is_dir() {
            tree(text, &path, depth + 1);
        }
    }
}

/// The cgroups that programs of ours are pinned for, with the hooks of each.
///
/// # Errors
/// The pins cannot be read.
pub fn cgroups() -> Result<String, InterceptError> {
    let Some(pins) = PinDirectory::find() else {
        return Ok("nothing is pinned: no bpffs is mounted at /sys/fs/bpf, nor one of ours\n".to_owned());
    };
    let cgroups = Cgroup2::find()?;
    let mut text = String::new();
    for (title, ids, place) in [
        (
            "Agents",
            attach::pinned_cgroups(&pins)?,
            PinDirectory::links_of as fn(&PinDirectory, u64) -> PathBuf,
        ),
        ("our own", attach::own_cgroups(&pins)?, PinDirectory::own_of),
    ] {
        line(&mut text, title);
        for id in ids.into_iter().take(MOST) {
            let path = cgroups.find_id(id)?;
            let path = path.map_or_else(|| "gone".to_owned(), |path| path.display().to_string());
            line(&mut text, &format!("  cgroup {id}: {path}"));
            tree(&mut text, &place(&pins, id), 1);
        }
    }
    Ok(text)
}

/// Every interface of this namespace, and the classifiers on its ingress in the order in which they run.
///
/// # Errors
/// No netlink.
pub fn classifiers() -> Result<String, InterceptError> {
    let mut text = String::new();
    let mut netlink = Netlink::open()?;
    let pins = PinDirectory::find()
        .map(|pins| pins.classifiers())
        .unwrap_or_default();
    for link in tc::links(&mut netlink)?.into_iter().take(MOST) {
        line(
            &mut text,
            &format!(
                "{}: {}  kind {}  {}  addresses {}",
                link.index,
                link.name,
                link.kind.as_deref().unwrap_or("-"),
                if link.up { "up" } else { "down" },
                link.addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        );
        match tc::view(&mut netlink, &link, None, &pins) {
            Ok(chain) => {
                for (place, entry) in (1..).zip(chain) {
                    let ours = if entry.ours { "  OURS" } else { "" };
                    let tag = entry.program.as_ref().map_or("-", |program| program.tag.as_str());
                    line(&mut text, &format!("   {place}. {entry}  tag {tag}{ours}"));
                }
            }
            Err(error) => line(&mut text, &format!("   {error}")),
        }
    }
    Ok(text)
}

/// The routing rules of both families, and the routes of our table.
///
/// # Errors
/// No netlink.
pub fn routes() -> Result<String, InterceptError> {
    let mut netlink = Netlink::open()?;
    let mut text = String::from("rules\n");
    for rule in tc::routing::list_rules(&mut netlink)? {
        line(&mut text, &format!("  {rule}"));
    }
    line(&mut text, &format!("\nroutes of table {}", tc::TABLE));
    for route in tc::routing::list_routes(&mut netlink)? {
        line(&mut text, &format!("  {route}"));
    }
    Ok(text)
}

fn line(text: &mut String, row: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", row.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_and_rules_of_this_namespace_are_listed() {
        // Links and rules need no rights; a chain that may not be read is said at its interface.
        assert!(classifiers().unwrap().contains(": lo"), "{:?}", classifiers());
        let routes = routes().unwrap();
        assert!(
            routes.contains("lookup 254") && routes.contains("routes of table 3536"),
            "{routes}"
        );
    }
}
