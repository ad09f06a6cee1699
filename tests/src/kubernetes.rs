//! A real one-node Kubernetes (1.20) whose node is a [`Host`](crate::netns::Host) of the harness.
//!
//! `tests/kubernetes/build.sh` builds the programs once below `target/kubernetes`; `tests/kubernetes/node.sh` runs them in
//! the host's network and mount namespace and takes all down when its standard input ends: with the guard, or with a test that was
//! killed. Start the proxy on `world.host` as everywhere else ([`Launch`](crate::proxy::Launch)), with [`Kubernetes::environment`].

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::world::{World, hosts};
use crate::{capture, eventually, sibling, succeed};

/// The pods' ranges: what the world must know the way to.
const PODS: &[(&str, &str)] = &[
    ("10.91.0.0/24", "198.51.100.2"),
    ("2001:db8:91::/64", "2001:db8:ffff::2"),
];
/// The node's address, see [`crate::netns::join`].
const ADDRESS: &str = "198.51.100.2";
/// The API server as pods and the proxy reach it: a service address, which kube-proxy translates.
const API: &str = "10.92.0.1";
/// The image of [`Kubernetes::pod`]: busybox, curl, `agent-load`, and the world's authority at `/etc/ca.pem`.
pub const CLIENT: &str = "docker.io/local/client:1";
/// The packages of PyPI that render and judge the chart, in the versions that the cases were written with.
const CHART: [&str; 3] = [
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "botocore==1.44.5",
];
/// How long a pod may take to run: the node is two cores and everything is new.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node that is Ready; comes down with this guard.
pub struct Kubernetes<'a> {
    world: &'a World,
    script: Child,
    alive: Option<ChildStdin>,
    // After the script, whose programs are in there.
    cgroup: Cgroup,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

/// Why a node cannot run here; builds what is missing when that is all.
pub fn obstacle() -> Option<String> {
    let check = |options: &[&str]| {
        capture(
            Command::new(folder().join("build.sh"))
                .args(options)
                .arg(programs()),
        )
    };
    let missing = |output: &Output| String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match check(&["--check"]) {
        Ok(output) if output.status.success() => return None,
        Ok(output) => eprintln!(
            "harness: {}; building now, which takes some minutes",
            missing(&output)
        ),
        Err(error) => return Some(format!("{error:#}")),
    }
    match check(&[]) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "the programs of a Kubernetes node cannot be built: {}",
            missing(&output)
        )),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// What `tests/kubernetes/chart.py` prints for these words. Its packages of PyPI are put into `target/venv-chart` on first use.
pub fn chart(words: &[&str]) -> Result<String> {
    let target = programs().parent().map(Path::to_owned).context("no target")?;
    let venv = target.join("venv-chart");
    let python = venv.join("bin/python");
    let there = || {
        capture(Command::new(&python).args(["-c", "import helm_python, kubernetes_validate, botocore, yaml"]))
            .is_ok_and(|output| output.status.success())
    };
    if !there() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        succeed(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(CHART),
        )?;
    }
    succeed(Command::new(&python).arg(folder().join("chart.py")).args(words))
}

/// Where the scripts are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes")
}

/// Where the programs are built.
fn programs() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    // The scripts run elsewhere: a relative path would not do.
    std::path::absolute(target.join("kubernetes")).unwrap_or_else(|_| target.join("kubernetes"))
}

impl<'a> Kubernetes<'a> {
    /// Starts the node (about 30 s) and gives it the image [`CLIENT`].
    pub fn start(world: &'a World) -> Result<Self> {
        for (range, node) in PODS {
            world.net.ip(&format!("route add {range} via {node}"))?;
        }
        let cgroup = Cgroup::new("node")?;
        let mut script = world
            .host
            .command(folder().join("node.sh"))
            .arg("hold")
            .arg(programs().join("bin"))
            .args([cgroup.inside(), ADDRESS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C is for the test, which then closes our pipe.
            .process_group(0)
            .spawn()
            .context("cannot start node.sh")?;
        let alive = script.stdin.take();
        let output = script.stdout.take();
        let node = Self {
            world,
            script,
            alive,
            cgroup,
        };
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            bail!("the Kubernetes node did not start; node.sh says above why");
        }
        let authority = world.host.folder().join("ca.pem");
        let mut files = vec![
            ("/bin/busybox".into(), "/bin/busybox".into()),
            (authority, "/etc/ca.pem".into()),
        ];
        files.extend(with_libraries(&which("curl")?, "/usr/bin/curl")?);
        files.extend(with_libraries(&sibling("agent-load")?, "/usr/bin/agent-load")?);
        node.image(CLIENT.trim_start_matches("docker.io/"), &["/bin/sh"], &files)?;
        Ok(node)
    }

    /// The cgroup above `kubepods`; pods are at `<inside>/kubepods/besteffort/pod<uid>/<container>`.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The end of what a part of the node logged: `apiserver`, `kubelet`, `containerd`, `kube-proxy`, …
    pub fn log(&self, part: &str) -> String {
        let path = self.world.host.path(&format!("/run/kubernetes/log/{part}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
        // A Go program that dies says why before thousands of lines of stacks.
        let end = text.find("\ngoroutine ").unwrap_or(text.len());
        let lines: Vec<&str> = text[..end].lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Runs kubectl on the node as an administrator.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        succeed(self.kubectl_command().args(words))
    }

    /// A kubectl command, for one that may fail or that has an input.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.world.host.command(programs().join("bin/kubectl"));
        command
            .env("KUBECONFIG", "/run/kubernetes/admin.kubeconfig")
            .env("HOME", "/run/kubernetes");
        command
    }

    /// Applies a manifest, YAML or JSON.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut kubectl = self
            .kubectl_command()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        if let Some(mut input) = kubectl.stdin.take() {
            input.write_all(manifest.as_bytes())?;
        }
        let output = kubectl.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Makes an image of local files, `(source, path in the image)`, with links for busybox's applets where that is one of them.
    pub fn image(&self, name: &str, entrypoint: &[&str], files: &[(PathBuf, PathBuf)]) -> Result<()> {
        let mut command = self.world.host.command(folder().join("node.sh"));
        command.args(["image", name]).arg(json!(entrypoint).to_string());
        for (source, path) in files {
            command.arg(format!("{}={}", source.display(), path.display()));
            if path == Path::new("/bin/busybox") {
                for applet in ["sh", "ls", "cat", "wget", "sleep", "ip", "env", "id"] {
                    command.arg(format!("link:busybox=/bin/{applet}"));
                }
            }
        }
        succeed(&mut command).map(drop)
    }

    /// Applies a pod of [`CLIENT`] that waits for [`Self::exec`], with these labels and the intake's names in its hosts file, and
    /// waits until it runs.
    pub fn pod(&self, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
        let labels: serde_json::Map<String, Value> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let mut aliases = serde_json::Map::new();
        for (host, address) in hosts() {
            if let Some(names) = aliases
                .entry(address.to_string())
                .or_insert_with(|| json!([]))
                .as_array_mut()
            {
                names.push(json!(host));
            }
        }
        let aliases: Vec<Value> = aliases
            .into_iter()
            .map(|(ip, hostnames)| json!({"ip": ip, "hostnames": hostnames}))
            .collect();
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "hostAliases": aliases,
                    "containers": [{
                        "name": "client", "image": CLIENT, "imagePullPolicy": "Never",
                        "command": ["/bin/sleep", "3600"],
                    }],
                },
            })
            .to_string(),
        )?;
        self.running("default", name)
    }

    /// Waits until a pod runs.
    pub fn running(&self, namespace: &str, name: &str) -> Result<Pod> {
        let waited = eventually(&format!("pod {name} runs"), PATIENCE, || {
            let about = self.kubectl(&["-n", namespace, "get", "pod", name, "-o", "json"])?;
            let about: Value = serde_json::from_str(&about)?;
            if about["status"]["phase"] != "Running" {
                return Ok(None);
            }
            let addresses = about["status"]["podIPs"].as_array().map(|all| {
                all.iter()
                    .filter_map(|one| one["ip"].as_str()?.parse().ok())
                    .collect()
            });
            Ok(Some(Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: about["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                addresses: addresses.unwrap_or_default(),
            }))
        });
        waited.with_context(|| {
            self.kubectl(&["-n", namespace, "describe", "pod", name])
                .unwrap_or_else(|error| format!("{error:#}"))
        })
    }

    /// Deletes a pod and waits until it is gone.
    pub fn delete(&self, pod: &Pod) -> Result<()> {
        self.kubectl(&["-n", &pod.namespace, "delete", "pod", &pod.name, "--timeout=60s"])
            .map(drop)
    }

    /// Runs a program in a pod; its outputs, whatever it returned.
    pub fn exec(&self, pod: &Pod, words: &[&str]) -> Result<Output> {
        capture(
            self.kubectl_command()
                .args(["-n", &pod.namespace, "exec", &pod.name, "--"])
                .args(words),
        )
    }

    /// Runs curl in a pod with `--cacert` of the world's authority; standard output, or an error when curl fails.
    pub fn curl(&self, pod: &Pod, words: &[&str]) -> Result<String> {
        let mut all = vec!["curl", "-sS", "--max-time", "30", "--cacert", "/etc/ca.pem"];
        all.extend_from_slice(words);
        let output = self.exec(pod, &all)?;
        if !output.status.success() {
            bail!(
                "curl in pod {}: {}: {}",
                pod.name,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the proxy's service account with its rights (`tests/kubernetes/proxy-rbac.yaml`) and a folder on the host as a pod has it at
    /// `/var/run/secrets/kubernetes.io/serviceaccount`: `token`, `ca.crt`, `namespace`. 1.20 keeps the token in a Secret.
    pub fn service_account(&self) -> Result<PathBuf> {
        const NAME: &str = "agent-fips-proxy";
        self.apply(include_str!("../kubernetes/proxy-rbac.yaml"))?;
        let secret = eventually("the service account's token", Duration::from_secs(30), || {
            let name = self.kubectl(&[
                "-n",
                NAME,
                "get",
                "serviceaccount",
                NAME,
                "-o",
                "jsonpath={.secrets[0].name}",
            ])?;
            Ok((!name.trim().is_empty()).then(|| name.trim().to_owned()))
        })?;
        let to = self.world.host.folder().join("serviceaccount");
        std::fs::create_dir_all(&to)?;
        for file in ["token", "ca.crt", "namespace"] {
            // A dot in a key is escaped in a template.
            let key = format!("go-template={{{{index .data \"{file}\" | base64decode}}}}");
            let content = self.kubectl(&["-n", NAME, "get", "secret", &secret, "-o", &key])?;
            std::fs::write(to.join(file), content)?;
        }
        Ok(to)
    }

    /// Where the API server is, as kubelet tells it to containers.
    pub fn environment(&self) -> [(&'static str, &'static str); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", API),
            ("KUBERNETES_SERVICE_PORT", "443"),
        ]
    }
}

impl Drop for Kubernetes<'_> {
    fn drop(&mut self) {
        drop(self.alive.take());
        match self.script.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("harness: node.sh ended with {status}"),
            Err(error) => eprintln!("harness: node.sh: {error}"),
        }
    }
}

/// A program and its libraries, `(source, path in an image)`, each library at the place where the loader looks.
pub fn with_libraries(program: &Path, to: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let listed = succeed(Command::new("ldd").arg(program))?;
    let mut files = vec![(program.to_owned(), to.into())];
    for line in listed.lines() {
        // `libc.so.6 => /lib/… (0x…)`, or the loader alone: `/lib64/ld-linux-x86-64.so.2 (0x…)`; the vDSO has no file.
        let path = line
            .split(" => ")
            .last()
            .and_then(|rest| rest.split_whitespace().next());
        if let Some(path) = path.filter(|path| path.starts_with('/')) {
            files.push((path.into(), path.into()));
        }
    }
    Ok(files)
}

fn which(program: &str) -> Result<PathBuf> {
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not on PATH"))
}
