//! The pods of the harness: the real plug-ins connect them, and what is said of them is so.

use std::path::PathBuf;

use anyhow::{Context, Result};
use harness::agent::ask;
use harness::cgroup::mount;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::world::{INTAKE4, INTAKE6, VERSIONED, World};
use harness::{check, check_eq, succeed};

/// Both plug-ins, both families, with and without masquerading; the world's view of the source is what the setting says.
pub fn pods_reach_the_intake() -> Result<()> {
    for (plugin, masquerade, style) in [
        (Plugin::Ptp, true, Style::Cgroupfs),
        (Plugin::Ptp, false, Style::Systemd),
        (Plugin::Bridge, true, Style::Systemd),
        (Plugin::Bridge, false, Style::Cgroupfs),
    ] {
        let title = format!("{plugin:?}, masquerade {masquerade}");
        let world = World::new()?;
        let node = Node::new(&world, plugin, masquerade, style)?;
        let pod = node.pod().with_context(|| title.clone())?;
        let node_addresses = ["198.51.100.2".parse()?, "2001:db8:ffff::2".parse()?];
        for (option, family, own, of_node) in [
            ("-4", INTAKE4, pod.network.v4, node_addresses[0]),
            ("-6", INTAKE6, pod.network.v6, node_addresses[1]),
        ] {
            send(&world, &pod, option).with_context(|| format!("{title}, {option}"))?;
            let seen = world.intake.seen();
            let last = seen.last().context("the intake saw nothing")?;
            let source = if masquerade { of_node } else { own };
            check_eq!(
                (last.local.ip(), last.peer.ip()),
                (family, source),
                "{title}, {option}"
            );
        }
        check_eq!(world.intake.faults(), Vec::<String>::new(), "{title}: faults");

        // The device of the node is this pod's: it goes with the pod.
        let there = |veth: &str| node.host().ip(&format!("link show dev {veth}")).is_ok();
        let veth = pod.network.veth.clone();
        check!(there(&veth), "{title}: no device {veth}");
        if plugin == Plugin::Bridge {
            let ports = succeed(
                node.host()
                    .command("ip")
                    .args(["-o", "link", "show", "master", "cni0"]),
            )?;
            check!(ports.contains(&veth), "{veth} is no port of cni0: {ports}");
        }
        let path = pod.cgroup.inside().to_owned();
        drop(pod);
        check!(!there(&veth), "{title}: {veth} outlives its pod");
        let folder = mount()?.join(&path[1..]);
        check!(!folder.exists(), "{title}: {} outlives its pod", folder.display());
    }
    Ok(())
}

/// Where a pod's processes are: cgroups by kubelet's names, a namespace that a restart changes and a neighbour shares.
pub fn pods_are_where_kubelet_puts_them() -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, true, Style::Cgroupfs)?;
    let pod = node.pod()?;
    let (root, uid) = (node.cgroup().inside().to_owned(), pod.uid.clone());
    check!(root.ends_with("/kubepods"), "{root}");
    check_eq!(
        pod.above.inside(),
        format!("{root}/besteffort/pod{uid}"),
        "the pod's cgroup"
    );
    check!(
        pod.cgroup
            .inside()
            .starts_with(&format!("{root}/besteffort/pod{uid}/")),
        "{}",
        pod.cgroup.inside()
    );
    for pid in [pod.pid().to_string(), "self".to_owned()] {
        // The holder, seen from outside, and a program, seen by itself.
        let text = if pid == "self" {
            succeed(pod.command("cat").arg("/proc/self/cgroup"))?
        } else {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?
        };
        check!(
            text.contains(&format!("0::{}", pod.cgroup.inside())),
            "{pid}: {text}"
        );
    }
    let first = namespace(&pod)?;
    check!(
        first != std::fs::read_link("/proc/self/ns/net")?,
        "a pod in the machine's own namespace"
    );

    // A neighbour in the same network, and another container of the same pod.
    let neighbour = node.pod_beside(&pod)?;
    check_eq!(namespace(&neighbour)?, first, "a shared network");
    check!(
        neighbour.uid != pod.uid && neighbour.cgroup.inside() != pod.cgroup.inside(),
        "a pod of its own"
    );
    let second = node.container_beside(&pod)?;
    check_eq!(
        (&second.uid, second.above.inside()),
        (&pod.uid, pod.above.inside()),
        "the same pod"
    );
    check_eq!(namespace(&second)?, first, "the pod's network");
    send(&world, &neighbour, "-4")?;
    drop((neighbour, second));

    let cgroup = pod.cgroup.inside().to_owned();
    let pod = node.restart(pod)?;
    check!(namespace(&pod)? != first, "a restart makes a new namespace");
    check_eq!(pod.cgroup.inside(), cgroup, "a restart in place keeps the cgroup");
    send(&world, &pod, "-6")?;
    let another = node.pod()?;
    check!(another.network.v4 != pod.network.v4, "two pods with one address");

    drop((pod, another));
    let left: Vec<_> = std::fs::read_dir(world.host.path("/run/netns"))?
        .flatten()
        .map(|e| e.path())
        .collect();
    check!(left.is_empty(), "names of namespaces stay behind: {left:?}");

    // The driver `systemd` writes the same pod in slices.
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, true, Style::Systemd)?;
    let pod = node.pod()?;
    let slice = format!("kubepods-besteffort-pod{}.slice", pod.uid.replace('-', "_"));
    let expected = format!(
        "{}/kubepods-besteffort.slice/{slice}/cri-containerd-",
        node.cgroup().inside()
    );
    check!(
        pod.cgroup.inside().starts_with(&expected) && pod.cgroup.inside().ends_with(".scope"),
        "{}",
        pod.cgroup.inside()
    );
    Ok(())
}

/// One request of a pod straight to the intake.
fn send(world: &World, pod: &Pod, family: &str) -> Result<()> {
    let authority = world.host.folder().join("ca.pem").display().to_string();
    let url = format!("https://{VERSIONED}/api/v2/series");
    let words = [family, "--cacert", &authority, "-d", "hello", &url];
    let answer = ask(&pod.network.host, Some(&pod.cgroup), &words)?;
    check_eq!(answer.status, 202, "{}", answer.error);
    Ok(())
}

/// The network namespace of a program of the pod.
fn namespace(pod: &Pod) -> Result<PathBuf> {
    let holder = std::fs::read_link(format!("/proc/{}/ns/net", pod.pid()))?;
    let program = succeed(pod.command("readlink").arg("/proc/self/ns/net"))?;
    check_eq!(PathBuf::from(program.trim()), holder, "holder and program");
    Ok(holder)
}
