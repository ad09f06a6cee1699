//! The chart, the plain manifests and the task definition of `proxy/dist`: rendered and judged offline, and the configuration that they
//! give to the proxy judged by the proxy.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use harness::kubernetes::chart;
use harness::proxy::binary;
use harness::suite::{case, run};
use harness::{capture, check, check_eq};
use serde_json::{Value, json};

fn main() -> ExitCode {
    run(vec![
        case(
            "every_values_file_renders_and_validates",
            &[],
            every_values_file_renders_and_validates,
        ),
        case("a_wrong_value_is_refused", &[], a_wrong_value_is_refused),
        case("rights_are_the_least", &[], rights_are_the_least),
        case(
            "plain_manifests_are_the_chart's",
            &[],
            plain_manifests_are_the_charts,
        ),
        case("every_value_is_documented", &[], every_value_is_documented),
        case("the_task_definition_is_ecs", &[], the_task_definition_is_ecs),
    ])
}

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/dist")
}

/// The objects that the chart makes of a values file.
fn objects(values: &Path) -> Result<Vec<Value>> {
    let text = chart(&["render", &values.display().to_string()])?;
    Ok(serde_json::from_str(&text)?)
}

fn one<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().with_context(|| format!("no {kind}"))?;
    check!(found.next().is_none(), "more than one {kind}");
    Ok(first)
}

fn every_values_file_renders_and_validates() -> Result<()> {
    let mut files = 0;
    for entry in std::fs::read_dir(dist().join("helm/agent-fips-proxy/ci"))? {
        let path = entry?.path();
        chart(&["validate", &path.display().to_string()])?;
        let objects = objects(&path)?;
        let text = one(&objects, "ConfigMap")?["data"]["config.yaml"]
            .as_str()
            .context("no configuration")?;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, text)?;
        let output = capture(
            Command::new(binary()?)
                .args(["config", "check", "--config"])
                .arg(&config),
        )?;
        check!(
            output.status.success(),
            "{}: {}\n{text}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let named = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let account = &one(&objects, "DaemonSet")?["spec"]["template"]["spec"]["serviceAccountName"];
        let expected = match named.as_str() {
            "off-values.yaml" => "existing",
            _ => "agent-fips-proxy",
        };
        check_eq!(account, expected, "{named}");
        files += 1;
    }
    check!(files >= 4, "only {files} values files");
    Ok(())
}

fn a_wrong_value_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (values, named) in [
        (json!({"intercept": {"datapth": "tc"}}), "datapth"),
        (json!({"intercept": {"datapath": "xdp"}}), "/intercept/datapath"),
        (json!({"intercept": {"enabled": "yes"}}), "/intercept/enabled"),
        (
            json!({"intercept": {"onFailure": "ignore"}}),
            "/intercept/onFailure",
        ),
        (
            json!({"explicit": {"portRangeStart": 65521}}),
            "/explicit/portRangeStart",
        ),
        (json!({"site": "https://datadoghq.com"}), "/site"),
        (
            json!({"updateStrategy": {"maxUnavailable": 0}}),
            "/updateStrategy/maxUnavailable",
        ),
        (json!({"hostPaths": {"bpffs": "sys/fs/bpf"}}), "/hostPaths/bpffs"),
        (json!({"seccompProfile": "Localhost"}), "/seccompProfile"),
        (json!({"privileged": true}), "privileged"),
    ] {
        let file = folder.path().join("values.json");
        std::fs::write(&file, values.to_string())?;
        match chart(&["render", &file.display().to_string()]) {
            Ok(_) => anyhow::bail!("{values} was rendered"),
            Err(error) => check!(format!("{error:#}").contains(named), "{values}: {error:#}"),
        }
    }
    Ok(())
}

/// What the pod may do is written down once more on purpose: a change of the chart must be a change here, and of THREAT-MODEL.
fn rights_are_the_least() -> Result<()> {
    let objects = objects(&dist().join("helm/agent-fips-proxy/ci/default-values.yaml"))?;
    let pod = &one(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    let containers = pod["containers"].as_array().context("no containers")?;
    check_eq!(containers.len(), 1, "containers");
    let rights = &containers[0]["securityContext"];
    for (field, value) in [
        ("privileged", json!(false)),
        ("allowPrivilegeEscalation", json!(false)),
        ("readOnlyRootFilesystem", json!(true)),
        ("seccompProfile", json!({"type": "RuntimeDefault"})),
    ] {
        check_eq!(rights[field], value, "{field}");
    }
    check_eq!(rights["capabilities"]["drop"], json!(["ALL"]), "dropped");
    let mut added: Vec<&str> = rights["capabilities"]["add"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    added.sort_unstable();
    let allowed = [
        "BPF",
        "DAC_OVERRIDE",
        "KILL",
        "NET_ADMIN",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_PTRACE",
    ];
    check_eq!(added, allowed, "capabilities");
    let paths: Vec<&str> = pod["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    let allowed = [
        "/sys/fs/cgroup",
        "/sys/fs/bpf",
        "/run/agent-fips-proxy",
        "/var/lib/agent-fips-proxy",
    ];
    check_eq!(paths, allowed, "paths of the host");
    let rules = &one(&objects, "ClusterRole")?["rules"];
    check_eq!(
        *rules,
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]),
        "rights in the cluster"
    );
    // Every node has Agents, also one that is not ready for others.
    check_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "tolerations");
    check_eq!(pod["priorityClassName"], "system-node-critical", "priority");
    Ok(())
}

fn plain_manifests_are_the_charts() -> Result<()> {
    chart(&["plain", "--check"]).map(drop)
}

/// README.md has a row for each value, with its default.
fn every_value_is_documented() -> Result<()> {
    let page = std::fs::read_to_string(dist().join("helm/agent-fips-proxy/README.md"))?;
    let values = chart(&["values"])?;
    check!(values.lines().count() > 30, "{values}");
    for (name, default) in values.lines().filter_map(|line| line.split_once(' ')) {
        let row = format!("| `{name}` | `{default}` |");
        check!(page.contains(&row), "README.md has no row that begins with {row}");
    }
    Ok(())
}

fn the_task_definition_is_ecs() -> Result<()> {
    let file = dist().join("ecs/task-definition.json");
    chart(&["ecs", &file.display().to_string()])?;
    let mut definition: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let proxy = &definition["containerDefinitions"][0];
    check_eq!(
        proxy["linuxParameters"]["capabilities"],
        json!({"drop": ["ALL"]}),
        "no right is kept"
    );
    // The judge is one: what is wrong is found.
    definition["containerDefinitions"][0]["stopTimeout"] = json!("soon");
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong.json");
    std::fs::write(&wrong, definition.to_string())?;
    match chart(&["ecs", &wrong.display().to_string()]) {
        Ok(_) => anyhow::bail!("a wrong type passed"),
        Err(error) => check!(format!("{error:#}").contains("stopTimeout"), "{error:#}"),
    }
    Ok(())
}
