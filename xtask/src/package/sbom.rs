//! The list of what is inside, in CycloneDX 1.5: the crates that are linked, those of the eBPF programs, and the cryptographic module.
//! Made here of what cargo says: cargo-cyclonedx describes packages of a workspace one by one, knows nothing of the programs that
//! the build script compiles, nor of a module with a certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Job, NAME, date, sha256, write};
use crate::sh;

/// In the tree because a feature of rustls names it; nothing of it is linked, which `cargo xtask audit` shows by the symbols.
const UNLINKED: &str = "aws-lc-sys";

/// A crate that is in the program.
pub struct Crate {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub licence: String,
    /// Where its sources are.
    pub folder: PathBuf,
    /// From crates.io; ours are not.
    pub registry: bool,
    /// SHA-256 of its archive, from Cargo.lock.
    checksum: Option<String>,
    /// Runs in the kernel.
    kernel: bool,
    description: String,
    /// Its id for cargo, and those it needs.
    id: String,
    needs: Vec<String>,
}

/// Everything that is linked into the program or its eBPF object; sorted by name and version.
pub fn crates() -> Result<Vec<Crate>> {
    let user = tree(&["--package", NAME])?;
    let kernel = tree(&["--package", "proxy-ebpf", "--features", "kernel"])?;
    let target = host()?;
    let metadata = sh::output(sh::cargo().args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--features=proxy-ebpf/kernel",
        "--filter-platform",
        &target,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let checksums = checksums()?;
    let mut needs = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().context("nodes")? {
        needs.insert(text(&node["id"])?, normal(node)?);
    }
    let mut crates = Vec::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let key = (text(&package["name"])?, text(&package["version"])?);
        if !user.contains(&key) && !kernel.contains(&key) {
            continue;
        }
        let id = text(&package["id"])?;
        let manifest = PathBuf::from(text(&package["manifest_path"])?);
        crates.push(Crate {
            licence: package["license"]
                .as_str()
                .unwrap_or("NOASSERTION")
                .replace('/', " OR "),
            folder: manifest.parent().map(Path::to_owned).unwrap_or_default(),
            registry: package["source"].is_string(),
            checksum: checksums.get(&key).cloned(),
            kernel: !user.contains(&key),
            description: package["description"]
                .as_str()
                .unwrap_or_default()
                .trim()
                .to_owned(),
            needs: needs.remove(&id).unwrap_or_default(),
            name: key.0,
            version: key.1,
            id,
        });
    }
    if crates.len() != user.union(&kernel).count() {
        bail!("cargo metadata and cargo tree disagree about what is linked");
    }
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(crates)
}

/// Name and version of all that is linked.
fn tree(words: &[&str]) -> Result<BTreeSet<(String, String)>> {
    let text = sh::output(
        sh::cargo()
            .args([
                "tree",
                "--locked",
                "--edges",
                "normal,no-proc-macro",
                "--prefix",
                "none",
                "--format",
                "{p}",
            ])
            .args(words),
    )?;
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some((
            words.next()?.to_owned(),
            words.next()?.strip_prefix('v')?.to_owned(),
        ))
    };
    Ok(text.lines().filter_map(pair).collect())
}

fn host() -> Result<String> {
    let text = sh::output(sh::command("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc names no host")?.to_owned())
}

/// Which crates a node needs when it runs.
fn normal(node: &Value) -> Result<Vec<String>> {
    let kinds = |one: &Value| {
        one["dep_kinds"]
            .as_array()
            .is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
    };
    let needs = node["deps"].as_array().context("deps")?;
    needs
        .iter()
        .filter(|one| kinds(one))
        .map(|one| text(&one["pkg"]))
        .collect()
}

/// From Cargo.lock, which is a list of paragraphs.
fn checksums() -> Result<BTreeMap<(String, String), String>> {
    let lock = std::fs::read_to_string(sh::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let field = |paragraph: &str, name: &str| {
        let line = paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    Ok(lock
        .split("[[package]]")
        .filter_map(|one| {
            Some((
                (field(one, "name")?, field(one, "version")?),
                field(one, "checksum")?,
            ))
        })
        .collect())
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no text: {value}"))
}

/// Writes `sbom.cdx.json` into `made`, and a copy beside the packages.
pub fn make(job: &Job, crates: &[Crate], made: &Path) -> Result<PathBuf> {
    let about: Value = serde_json::from_str(&sh::output(
        Command::new(&job.program).args(["version", "--json"]),
    )?)?;
    let digest = sha256(&job.program)?;
    let references: BTreeMap<&str, String> = crates
        .iter()
        .map(|one| (one.id.as_str(), reference(one)))
        .collect();
    let module = json!({
        "type": "library",
        "bom-ref": "module:aws-lc-fips",
        "supplier": {"name": "Amazon Web Services, Inc."},
        "name": about["module"]["module"],
        "version": about["module"]["version"],
        "licenses": [{"expression": "ISC AND (Apache-2.0 OR ISC) AND OpenSSL"}],
        "externalReferences": [{
            "type": "certification-report",
            "url": format!(
                "https://csrc.nist.gov/projects/cryptographic-module-validation-program/certificate/{}",
                text(&about["module"]["certificate"])?.trim_start_matches('#')
            ),
        }],
        "properties": [
            {"name": "cmvp:certificate", "value": about["module"]["certificate"]},
            {"name": "linkage", "value": about["module"]["linkage"]},
        ],
    });
    let mut components: Vec<Value> = crates
        .iter()
        .filter(|one| one.name != NAME)
        .map(component)
        .collect();
    components.push(module);
    let mut dependencies = vec![json!({"ref": "module:aws-lc-fips"})];
    for one in crates {
        let mut needs: Vec<String> = one
            .needs
            .iter()
            .filter_map(|id| references.get(id.as_str()).cloned())
            .collect();
        match one.name.as_str() {
            "aws-lc-fips-sys" => needs.push("module:aws-lc-fips".to_owned()),
            // The build script compiles them into it.
            NAME => needs.extend(crates.iter().filter(|other| other.kernel).map(reference)),
            _ => {}
        }
        needs.sort();
        needs.dedup();
        dependencies.push(json!({"ref": reference(one), "dependsOn": needs}));
    }
    let own = crates
        .iter()
        .find(|one| one.name == NAME)
        .context("the proxy is not in its own tree")?;
    let sbom = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(&digest),
        "version": 1,
        "metadata": {
            "timestamp": date(job.epoch, "+%Y-%m-%dT%H:%M:%SZ")?,
            "tools": {"components": [{"type": "application", "name": "cargo xtask package", "version": job.version}]},
            "component": {
                "type": "application",
                "bom-ref": reference(own),
                "name": NAME,
                "version": job.version,
                "description": own.description,
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "licenses": [{"expression": own.licence}],
                "properties": [
                    {"name": "git:commit", "value": about["commit"]},
                    {"name": "ebpf:compiler", "value": about["ebpf_compiler"]},
                ],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    let text = serde_json::to_string_pretty(&sbom)? + "\n";
    write(&made.join("sbom.cdx.json"), &text)?;
    let beside = job.output.join(format!("{NAME}_{}.cdx.json", job.version));
    write(&beside, text)?;
    Ok(beside)
}

fn reference(one: &Crate) -> String {
    format!("pkg:cargo/{}@{}", one.name, one.version)
}

fn component(one: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(one),
        "name": one.name,
        "version": one.version,
        "description": one.description,
        "scope": if one.name == UNLINKED { "excluded" } else { "required" },
        "licenses": [{"expression": one.licence}],
        "properties": [{"name": "runs-in", "value": if one.kernel { "kernel (eBPF)" } else { "process" }}],
    });
    if one.registry {
        component["purl"] = json!(reference(one));
    }
    if let Some(checksum) = &one.checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

/// The same program has the same number: a UUID of a form that its maker defines (RFC 9562, version 8).
fn serial(digest: &str) -> String {
    let part = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!(
        "urn:uuid:{}-{}-8{}-a{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}
