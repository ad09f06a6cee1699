//! The chart on a real node: a DaemonSet with the rights that it lists and no others intercepts a pod that was not changed, by both
//! datapaths; updates under load, the switch, removal; and the sidecar of Datadog's own chart.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::kubernetes::{Kubernetes, Pod, chart, with_libraries};
use harness::world::{API_KEY, SITE, VERSIONED, World, hosts};
use harness::{check, check_eq, eventually, succeed};
use serde_json::{Value, json};

const NAME: &str = "agent-fips-proxy";
const LABEL: (&str, &str) = ("agent.datadoghq.com/component", "agent");
const IMAGE: &str = "local/agent-fips-proxy";

/// One node for all of it: to start one takes half a minute.
pub(super) fn the_chart_serves_a_node() -> Result<()> {
    let world = World::new()?;
    // As systemd mounts it on a real node.
    succeed(
        world
            .host
            .command("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"]),
    )?;
    let node = Kubernetes::start(&world)?;
    image(&world, &node)?;
    let stage = Stage {
        world: &world,
        node: &node,
    };
    stage.sidecar().context("sidecar")?;

    node.apply(include_str!("../../../proxy/dist/kubernetes/namespace.yaml"))?;
    let first = stage.objects("cgroup")?;
    stage.dry_run(&first)?;
    stage.roll_out(&first)?;
    let agent = node.pod("agent", &[LABEL])?;
    stage.intercepted(&agent, "cgroup")?;
    stage.rights()?;
    // The update is one to the other datapath, under load.
    stage.under_load(&agent, || stage.roll_out(&stage.objects("tc")?))?;
    stage.intercepted(&agent, "tc")?;
    stage.under_load(&agent, || stage.roll_out(&stage.objects("cgroup")?))?;
    stage.intercepted(&agent, "cgroup")?;
    check_eq!(world.plain.seen().len(), 0, "connections in the clear");

    stage.switched_off(&agent).context("the switch")?;
    stage.removed(&first).context("removal")
}

/// The image as `proxy/dist/image/Dockerfile` lays it out, with the world's authority for the public ones, and its site.
fn image(world: &World, node: &Kubernetes<'_>) -> Result<()> {
    let binary = std::env::var_os("AGENT_FIPS_PROXY_BIN").context("AGENT_FIPS_PROXY_BIN is not set")?;
    let dist = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/dist/image");
    let mut files = with_libraries(&PathBuf::from(binary), "/usr/bin/agent-fips-proxy")?;
    files.extend([
        (dist.join("passwd"), "/etc/passwd".into()),
        (dist.join("group"), "/etc/group".into()),
        (
            world.host.folder().join("ca.pem"),
            "/etc/ssl/certs/ca-certificates.crt".into(),
        ),
        ("own:4282".into(), "/run/agent-fips-proxy".into()),
        ("user:4282".into(), "".into()),
        (format!("env:DD_SITE={SITE}").into(), "".into()),
    ]);
    node.image(&format!("{IMAGE}:1"), &["/usr/bin/agent-fips-proxy"], &files)
}

struct Stage<'a> {
    world: &'a World,
    node: &'a Kubernetes<'a>,
}

impl Stage<'_> {
    /// What the chart makes of these values, as one list.
    fn objects(&self, datapath: &str) -> Result<String> {
        let values = json!({
            "site": SITE,
            "image": {"repository": format!("docker.io/{IMAGE}"), "tag": "1", "pullPolicy": "Never"},
            "intercept": {"datapath": datapath},
            // This Kubernetes is older than the field.
            "appArmorUnconfined": false,
        });
        let file = self.world.host.folder().join("values.json");
        std::fs::write(&file, values.to_string())?;
        let items: Value = serde_json::from_str(&chart(&["render", &file.display().to_string()])?)?;
        Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
    }

    fn dry_run(&self, objects: &str) -> Result<()> {
        let file = self.world.host.folder().join("objects.json");
        std::fs::write(&file, objects)?;
        let path = file.display().to_string();
        let said = self.node.kubectl(&["apply", "--dry-run=server", "-f", &path])?;
        check!(
            said.contains(&format!("daemonset.apps/{NAME} created (server dry run)")),
            "{said}"
        );
        Ok(())
    }

    fn roll_out(&self, objects: &str) -> Result<()> {
        self.node.apply(objects)?;
        self.settled()
    }

    /// Waits until the new pod is ready, as its probes say.
    fn settled(&self) -> Result<()> {
        let name = format!("daemonset/{NAME}");
        let waited = self
            .node
            .kubectl(&["-n", NAME, "rollout", "status", &name, "--timeout=90s"]);
        waited.map(drop).with_context(|| {
            let more = |words: &[&str]| {
                self.node
                    .kubectl(words)
                    .unwrap_or_else(|error| format!("{error:#}"))
            };
            more(&["-n", NAME, "describe", "pods"]) + &more(&["-n", NAME, "logs", &name, "--tail=40"])
        })
    }

    /// The program within the DaemonSet's pod.
    fn cli(&self, words: &[&str]) -> Result<String> {
        let name = format!("daemonset/{NAME}");
        let mut all = vec!["-n", NAME, "exec", &name, "--", "/usr/bin/agent-fips-proxy"];
        all.extend_from_slice(words);
        self.node.kubectl(&all)
    }

    /// The pod is taken by this datapath, and its request arrives by TLS.
    fn intercepted(&self, agent: &Pod, datapath: &str) -> Result<()> {
        eventually("the pod is taken", Duration::from_secs(30), || {
            let status: Value = serde_json::from_str(&self.cli(&["status", "--json"])?)?;
            let taken = &status["interception"]["agents"][0];
            Ok(
                (taken["datapath"] == datapath && taken["selector"]["pod"]["uid"] == agent.uid.as_str())
                    .then_some(()),
            )
        })?;
        for family in ["-4", "-6"] {
            self.world.intake.take();
            let key = format!("DD-API-KEY: {API_KEY}");
            let url = format!("http://{VERSIONED}/api/v2/series");
            self.node
                .curl(agent, &[family, "-sSf", "-H", &key, "-d", "hello", &url])?;
            let seen = self.world.intake.take().pop().context("the intake saw nothing")?;
            check_eq!(seen.body_len, 5, "{datapath} {family}");
        }
        Ok(())
    }

    /// The worker keeps no right, and is the image's user.
    fn rights(&self) -> Result<()> {
        let status: Value = serde_json::from_str(&self.cli(&["status", "--json"])?)?;
        let worker = status["worker"]["pid"].as_u64().context("no worker")?;
        let about = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
        for line in [
            "CapPrm:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "Uid:\t4282\t4282",
            "NoNewPrivs:\t1",
        ] {
            check!(about.contains(line), "no {line:?} in\n{about}");
        }
        Ok(())
    }

    /// Requests as of many Agents, which try again what failed: each is answered 202, and arrived.
    fn under_load(&self, agent: &Pod, update: impl FnOnce() -> Result<()>) -> Result<()> {
        self.world.intake.take();
        let url = format!("http://{VERSIONED}/api/v2/series");
        let load = self
            .node
            .kubectl_command()
            .args([
                "-n",
                &agent.namespace,
                "exec",
                "-i",
                &agent.name,
                "--",
                "/usr/bin/agent-load",
                "--url",
                &url,
            ])
            .args([
                "--clients",
                "8",
                "--interval-ms",
                "20",
                "--body",
                "2000",
                "--api-key",
                API_KEY,
                "--retries",
                "400",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        eventually("the load runs", Duration::from_secs(20), || {
            Ok((self.world.intake.count() > 100).then_some(()))
        })?;
        update()?;
        let before = self.world.intake.count();
        eventually("the load goes on", Duration::from_secs(20), || {
            Ok((self.world.intake.count() > before + 100).then_some(()))
        })?;
        // Its input ends: so does it.
        let output = load.wait_with_output()?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
        let again = report["again"].as_object().map_or(0, serde_json::Map::len);
        eprintln!(
            "update under load: {} requests, {again} of them sent again",
            report["attempts"]
        );
        check!(report["attempts"].as_u64() > Some(200), "{report}");
        check_eq!(
            report["statuses"]["202"],
            report["attempts"],
            "answered 202: {}",
            report["errors"]
        );
        Ok(())
    }

    /// The variable takes every hook away, with the update that it is.
    fn switched_off(&self, agent: &Pod) -> Result<()> {
        let name = format!("daemonset/{NAME}");
        self.node.kubectl(&[
            "-n",
            NAME,
            "set",
            "env",
            &name,
            "DD_FIPS_PROXY_INTERCEPT_ENABLED=false",
        ])?;
        self.settled()?;
        let url = format!("http://{VERSIONED}/direct");
        let answer = self.node.curl(agent, &["-4", "-sSf", &url])?;
        check_eq!(answer.as_str(), "plain", "it goes its own way");
        let pins = self.world.host.path("/sys/fs/bpf/agent-fips-proxy");
        check!(
            !pins.exists(),
            "pins are left: {:?}",
            std::fs::read_dir(&pins).map(Iterator::count)
        );
        Ok(())
    }

    /// Behind the switch a removal leaves nothing in the kernel.
    fn removed(&self, objects: &str) -> Result<()> {
        let file = self.world.host.folder().join("objects.json");
        std::fs::write(&file, objects)?;
        self.node
            .kubectl(&["delete", "-f", &file.display().to_string(), "--timeout=60s"])?;
        eventually("its pod is gone", Duration::from_secs(60), || {
            Ok(self
                .node
                .kubectl(&["-n", NAME, "get", "pods", "-o", "name"])?
                .trim()
                .is_empty()
                .then_some(()))
        })?;
        for words in [
            "ip rule show",
            "ip -6 rule show",
            "ip route show table all",
            "ip -6 route show table all",
            "tc filter show dev lo ingress",
        ] {
            let mut parts = words.split(' ');
            let said = succeed(
                self.world
                    .host
                    .command(parts.next().unwrap_or_default())
                    .args(parts),
            )?;
            check!(!said.contains("3536"), "{words}: {said}");
        }
        check!(
            !self.world.host.path("/sys/fs/bpf/agent-fips-proxy").exists(),
            "pins"
        );
        Ok(())
    }

    /// Two containers as Datadog's chart (3.240) lays them out with `fips.enabled`: of the proxy's, one variable and nothing else.
    fn sidecar(&self) -> Result<()> {
        let aliases: Vec<Value> = hosts()
            .iter()
            .map(|(name, address)| json!({"ip": address.to_string(), "hostnames": [name]}))
            .collect();
        let ports: Vec<Value> = (9803..9818)
            .map(|port| json!({"containerPort": port, "protocol": "TCP"}))
            .collect();
        self.node.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "sidecar", "namespace": "default"},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "hostAliases": aliases,
                    "containers": [
                        {"name": "agent", "image": harness::kubernetes::CLIENT, "imagePullPolicy": "Never", "command": ["/bin/sleep", "3600"]},
                        {"name": "fips-proxy", "image": format!("docker.io/{IMAGE}:1"), "imagePullPolicy": "Never", "ports": ports,
                         "env": [{"name": "DD_FIPS_LOCAL_ADDRESS", "value": "127.0.0.1"}]},
                    ],
                },
            })
            .to_string(),
        )?;
        let pod = self.node.running("default", "sidecar")?;
        eventually("the sidecar is ready", Duration::from_secs(30), || {
            Ok(self
                .node
                .curl(&pod, &["-sf", "http://127.0.0.1:9803/readyz"])
                .is_ok()
                .then_some(()))
        })
        .with_context(|| {
            self.node
                .kubectl(&["logs", "sidecar", "-c", "fips-proxy"])
                .unwrap_or_default()
        })?;
        for (port, path) in [
            (9804, "/api/v2/series"),
            (9805, "/api/v0.2/traces"),
            (9808, "/api/v2/logs"),
            (9818, "/api/v2/ndmflow"),
        ] {
            self.world.intake.take();
            let key = format!("DD-API-KEY: {API_KEY}");
            let url = format!("http://127.0.0.1:{port}{path}");
            self.node
                .curl(&pod, &["-sSf", "-H", &key, "-d", "hello", &url])
                .with_context(|| url.clone())?;
            let Some(seen) = self.world.intake.take().pop() else {
                bail!("{url}: the intake saw nothing");
            };
            check_eq!((seen.body_len, seen.path()), (5, path), "{url}");
        }
        self.node.delete(&pod)
    }
}
