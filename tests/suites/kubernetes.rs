//! On a real one-node Kubernetes: kubelet, containerd, kube-proxy and the CNI plug-ins as a cluster has them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::kubernetes::Kubernetes;
use harness::proxy::Launch;
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, INTAKE4, INTAKE6, VERSIONED, World};
use harness::{cgroup, check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn main() -> ExitCode {
    run(vec![
        case(
            "a_node_runs_pods_and_leaves_nothing",
            &[Need::Kubernetes],
            a_node_runs_pods_and_leaves_nothing,
        ),
        case(
            "the_labelled_pod_is_intercepted",
            &[Need::Kubernetes, Need::Bpf],
            the_labelled_pod_is_intercepted,
        ),
    ])
}

/// The proxy asks the API server as its service account may. A pod with the label is taken, by both datapaths, one after the
/// other on a reload; one without it is left alone; a pod that goes is forgotten.
fn the_labelled_pod_is_intercepted() -> Result<()> {
    const LABEL: (&str, &str) = ("agent.datadoghq.com/component", "agent");
    let world = World::new()?;
    let node = Kubernetes::start(&world)?;
    let config = |datapath: &str| -> Result<Value> {
        let mut config = world.config();
        config["intercept"] = json!({
            "enabled": true,
            "datapath": datapath,
            "agents": {
                "cgroups": [],
                "pods": {"api": "on", "node": "node", "service_account": node.service_account()?},
            },
        });
        Ok(config)
    };
    let mut launch = Launch::new(&world.host).config(&config("cgroup")?)?;
    for (name, value) in node.environment() {
        launch = launch.env(name, value);
    }
    let proxy = launch.start()?;
    let agent = node.pod("agent", &[LABEL])?;
    let other = node.pod("other", &[("app", "something-else")])?;
    for datapath in ["cgroup", "tc"] {
        proxy.rewrite(&config(datapath)?)?;
        proxy.signal(Signal::SIGHUP)?;
        let taken = eventually("the pod is taken", Duration::from_secs(20), || {
            let status = proxy.status()?;
            let agents = status["interception"]["agents"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            Ok((agents.len() == 1
                && agents[0]["datapath"] == datapath
                && agents[0]["namespaces"] != json!([]))
            .then(|| agents[0].clone()))
        })?;
        check_eq!(
            taken["selector"]["pod"],
            json!({"uid": agent.uid, "namespace": "default", "name": "agent"}),
            "{taken}"
        );
        for (family, address) in [("-4", INTAKE4), ("-6", INTAKE6)] {
            let key = format!("DD-API-KEY: {API_KEY}");
            let url = format!("http://{VERSIONED}/api/v2/series");
            world.intake.take();
            node.curl(&agent, &[family, "-sSf", "-H", &key, "-d", "hello", &url])
                .with_context(|| format!("{datapath} {family}\n{}", proxy.log()))?;
            let seen = world.intake.take().pop().context("the intake saw nothing")?;
            check_eq!(
                (seen.body_len, seen.local.ip(), seen.session.sni.as_deref()),
                (5, address, Some(VERSIONED)),
                "{datapath} {family}"
            );
            let line = proxy.access_line(|line| line["via"] == datapath)?;
            check_eq!(line["outcome"], json!("ok"), "{line}");
            let answer = node.curl(&other, &[family, "-sSf", &format!("http://{VERSIONED}/other")])?;
            check_eq!(
                answer.as_str(),
                "plain",
                "{datapath} {family}: a pod without the label"
            );
            check_eq!(
                world.intake.count(),
                0,
                "{datapath} {family}: it was not intercepted"
            );
        }
        let doctor = proxy.cli(&["doctor", "--json"])?;
        check!(
            doctor.status.success(),
            "{datapath}: {}",
            String::from_utf8_lossy(&doctor.stdout)
        );
    }
    node.delete(&agent)?;
    eventually("the pod is forgotten", Duration::from_secs(20), || {
        let status = proxy.status()?;
        let held = &status["interception"]["resources"];
        Ok((status["interception"]["agents"] == json!([])
            && held["networks"] == json!(0)
            && held["open_namespaces"] == json!(0)
            && held["interface_entries"] == json!(0))
        .then_some(()))
    })?;
    check!(
        !proxy
            .log()
            .contains(std::fs::read_to_string(node.service_account()?.join("token"))?.trim()),
        "the token is in the log"
    );
    Ok(())
}

fn a_node_runs_pods_and_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let before = machine()?;
    let node = Kubernetes::start(&world)?;
    let pod = node.pod("client", &[("app", "datadog-agent")])?;
    check_eq!(pod.addresses.len(), 2, "addresses of both families: {pod:?}");

    // Its cgroup is where a real node has it.
    let cgroup = node.cgroup().inside().to_owned() + "/kubepods/besteffort/pod" + &pod.uid;
    let folder = cgroup::mount()?.join(&cgroup[1..]);
    check!(folder.is_dir(), "no cgroup {}", folder.display());
    let selected = node.kubectl(&["get", "pods", "-l", "app=datadog-agent", "-o", "name"])?;
    check_eq!(selected.trim(), "pod/client", "the label");

    // The pod reaches the intake in TLS, in both families, behind the node's addresses.
    for (family, source) in [("-4", "198.51.100.2"), ("-6", "2001:db8:ffff::2")] {
        let key = format!("DD-API-KEY: {API_KEY}");
        let url = format!("https://{VERSIONED}/api/v2/series");
        node.curl(&pod, &[family, "-H", &key, "-d", "hello", &url])?;
        let seen = world.intake.seen();
        let last = seen.last().context("the intake saw nothing")?;
        check_eq!(
            (last.body_len, last.peer.ip().to_string().as_str()),
            (5, source),
            "{family}"
        );
    }
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");

    // The service account may look at pods, and at nothing else.
    let account = node.service_account()?;
    let token = std::fs::read_to_string(account.join("token"))?;
    let authority = account.join("ca.crt").display().to_string();
    let bearer = format!("Authorization: Bearer {token}");
    for (path, status) in [("pods?fieldSelector=spec.nodeName%3Dnode", 200), ("secrets", 403)] {
        let [(_, host), (_, port)] = node.environment();
        let url = format!("https://{host}:{port}/api/v1/{path}");
        // HTTP/1.1: this API server ends HTTP/2 streams in a way that curl takes for an error.
        let answer = curl(
            &world.host,
            None,
            &["--http1.1", "--cacert", &authority, "-H", &bearer, &url],
        )?;
        check_eq!(
            answer.status,
            status,
            "{path}: {} {}\n{}",
            answer.error,
            answer.body,
            node.log("apiserver")
        );
        check!(status != 200 || answer.body.contains(&pod.uid), "{}", answer.body);
    }
    node.delete(&pod)?;
    // Behind the API's back. On a hybrid hierarchy kubelet removes the pod's own folder in version 1 alone: its containers' must go.
    eventually("the containers' cgroups go", Duration::from_secs(30), || {
        let left = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        Ok((!left.into_iter().any(|entry| entry.path().is_dir())).then_some(()))
    })?;
    // One pod still runs when the node goes down.
    node.pod("second", &[])?;
    drop(node);

    let processes = world.host.processes();
    check_eq!(
        processes.len(),
        1,
        "only the host's holder is left: {processes:?}"
    );
    check_eq!(
        machine()?,
        before,
        "mounts, namespaces and cgroups of the machine"
    );
    Ok(())
}

/// What the machine shows of nodes: mounts, named namespaces, cgroups of this process's tests.
fn machine() -> Result<Vec<String>> {
    let mut all: Vec<String> = std::fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .collect();
    let ours = format!("afp-test-{}-", std::process::id());
    let hierarchies: Vec<String> = all
        .iter()
        .filter(|path| path.starts_with("/sys/fs/cgroup"))
        .cloned()
        .collect();
    for folder in hierarchies.iter().map(String::as_str).chain(["/run/netns"]) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if folder == "/run/netns" || name.starts_with(&ours) {
                all.push(entry.path().display().to_string());
            }
        }
    }
    all.sort();
    Ok(all)
}
