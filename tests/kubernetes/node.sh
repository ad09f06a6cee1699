#!/bin/bash
# A one-node Kubernetes in the network and mount namespace that this script runs in, out of the programs that build.sh made.
#
#   node.sh hold BIN CGROUP ADDRESS   starts the node, says `ready`, and takes it down when standard input ends (about 30 s to start)
#   node.sh image NAME:TAG ENTRYPOINT_JSON SRC=DEST...   an image of local files into the running node
#
# BIN is build.sh's DIR/bin, CGROUP the cgroup for the pods (an `/afp-test-…` of the harness), ADDRESS the node's own. Every file is in
# /run, which the harness makes a file system of the node's own: with the namespaces everything is gone. The cgroups are
# removed at the end. CNI=ptp (default) or bridge. Pods: 10.91.0.0/24 and 2001:db8:91::/64; services: 10.92.0.0/16.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=/run/kubernetes
socket=$state/containerd.sock
pods4=10.91.0.0/24 pods6=2001:db8:91::/64 services=10.92.0.0/16
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=$state KUBECONFIG=$state/admin.kubeconfig

# The machine's own namespaces are not for us.
for kind in net mnt; do
    if [ "$(readlink /proc/self/ns/$kind)" = "$(readlink /proc/1/ns/$kind)" ]; then
        echo "node.sh: refuses to run in the machine's own $kind namespace; the harness (tests/src/kubernetes.rs) starts it" >&2
        exit 1
    fi
done

# Where the cgroup hierarchies are: v1 ones, and the v2 one.
hierarchies() { awk '{for (i = 7; i <= NF; i++) if ($i == "-" && $(i + 1) ~ /^cgroup2?$/) print $5}' /proc/self/mountinfo | sort -u; }

# Kills what runs below CGROUP and removes it, and the harness's folder above it where that is empty.
remove_cgroups() {
    local hierarchy folder try
    for try in $(seq 50); do
        for hierarchy in $(hierarchies); do
            [ -d "$hierarchy$cgroup" ] || continue
            find "$hierarchy$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -KILL 2>/dev/null || true
        done
        sleep 0.1
        for hierarchy in $(hierarchies); do
            folder=$hierarchy$cgroup
            [ ! -d "$folder" ] || find "$folder" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
            # In version 2 the folder itself is the harness's.
            [ -f "$hierarchy/cgroup.controllers" ] || rmdir "$folder" "${folder%/*}" 2>/dev/null || true
        done
        [ -z "$(for hierarchy in $(hierarchies); do
            find "$hierarchy$cgroup" -mindepth 1 -type d 2>/dev/null || true
        done)" ] && return 0
    done
    echo "node.sh: cgroups $cgroup stay behind" >&2
}

# Folders of a harness that is gone, in the v1 hierarchies; one that still has processes stays.
sweep_cgroups() {
    local hierarchy folder maker
    for hierarchy in $(hierarchies); do
        for folder in "$hierarchy"/afp-test-*; do
            maker=${folder##*/afp-test-}
            if [ -d "$folder" ] && [ ! -d "/proc/${maker%%-*}" ]; then
                find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true
            fi
        done
    done
}

import_image() {
    python3 "$here/image.py" "$state/image.tar" "docker.io/$1" "${@:2}"
    ctr -a "$socket" -n k8s.io images import "$state/image.tar" >/dev/null
    rm -f "$state/image.tar"
}

declare -A pid
start() {
    local name=$1
    shift
    # In the background of a shell that reads: without a standard input of its own it would take the harness's word.
    "$@" > "$state/log/$name.log" 2>&1 < /dev/null &
    pid[$name]=$!
}

down() {
    trap - EXIT
    trap '' HUP INT TERM
    local name
    # kubelet first: it would start pods again.
    for name in kubelet kube-proxy controller-manager scheduler apiserver etcd containerd; do
        [ -z "${pid[$name]:-}" ] || kill -KILL "${pid[$name]}" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    # The shims of containerd are nobody's children.
    for name in /proc/[0-9]*; do
        if [ "$(readlink "$name/ns/mnt" 2>/dev/null)" = "$(readlink /proc/self/ns/mnt)" ] && [[ "$(readlink "$name/exe" 2>/dev/null)" = */containerd-shim* ]]; then
            kill -KILL "${name#/proc/}" 2>/dev/null || true
        fi
    done
    remove_cgroups
}

fail() {
    echo "node.sh: $1" >&2
    local log
    for log in "$state"/log/*.log; do
        echo "--- ${log##*/}" >&2
        tail -n 8 "$log" >&2
    done
    exit 1
}

# await SECONDS WHAT COMMAND...: until the command succeeds.
await() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || fail "$what: not in time"
        sleep 0.3
    done
}

ready() { "$bin/kubectl" get node node | grep -q ' Ready'; }

prepare() {
    # Pods and kubelet mount things that both must see; nothing of it leaves this mount namespace, which is private.
    mount --make-rshared /
    mkdir -p "$state"/{log,cni,pki,manifests,plugins}
    # Fixed places: kubelet's container logs, the results of CNI plug-ins.
    mount -t tmpfs -o mode=755 kubernetes /var/log
    mount -t tmpfs -o mode=755 kubernetes /var/lib
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    local hierarchy file
    for hierarchy in $(hierarchies); do
        mkdir -p "$hierarchy$cgroup"
        # A cpuset of version 1 begins empty, and refuses processes.
        for file in cpuset.cpus cpuset.mems; do
            [ ! -f "$hierarchy/$file" ] || [ -f "$hierarchy/cgroup.controllers" ] || {
                cat "$hierarchy/$file" > "$hierarchy${cgroup%/*}/$file"
                cat "$hierarchy/$file" > "$hierarchy$cgroup/$file"
            }
        done
    done
    local main='"type":"ptp"'
    [ "${CNI:-ptp}" = bridge ] && main='"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true'
    cat > "$state/cni/10-pods.conflist" <<END
{"cniVersion":"0.4.0","name":"pods","plugins":[{$main,"ipMasq":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"$pods4"}],[{"subnet":"$pods6"}]],
"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dataDir":"$state/ipam"}},{"type":"portmap","capabilities":{"portMappings":true}}]}
END
    # restrict_oom_score_adj: a root without CAP_SYS_RESOURCE cannot lower the score, and runc would fail.
    cat > "$state/containerd.toml" <<END
version = 2
root = "$state/containerd/root"
state = "$state/containerd/state"
[grpc]
  address = "$socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$state/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$state/cni"
END
    openssl genrsa -out "$state/pki/sa.key" 2048 2>/dev/null
    openssl rsa -in "$state/pki/sa.key" -pubout -out "$state/pki/sa.pub" 2>/dev/null
    printf '%s\n' 'admintoken,admin,admin,"system:masters"' 'nodetoken,system:node:node,node,"system:nodes"' > "$state/pki/tokens.csv"
    local user
    for user in admin node; do
        cat > "$state/$user.kubeconfig" <<END
{"apiVersion":"v1","kind":"Config","clusters":[{"name":"k","cluster":{"server":"https://127.0.0.1:6443","insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":"${user}token"}}],"contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],"current-context":"c"}
END
    done
}

up() {
    start containerd containerd -c "$state/containerd.toml"
    start etcd etcd --data-dir "$state/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
    start apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --cert-dir="$state/pki/api" --token-auth-file="$state/pki/tokens.csv" \
        --authorization-mode=Node,RBAC --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$state/pki/sa.key" \
        --service-account-key-file="$state/pki/sa.pub" --service-cluster-ip-range="$services" --advertise-address="$address" --secure-port=6443 \
        --allow-privileged=true --enable-admission-plugins=NodeRestriction --kubelet-preferred-address-types=InternalIP
    await 30 containerd ctr -a "$socket" version
    import_image local/pause:1 '["/bin/pause"]' "$bin/pause=/bin/pause"
    await 90 "the API server" "$bin/kubectl" get --raw /healthz
    start scheduler "$bin/kube-scheduler" --kubeconfig="$state/admin.kubeconfig" --leader-elect=false
    start controller-manager "$bin/kube-controller-manager" --kubeconfig="$state/admin.kubeconfig" --leader-elect=false \
        --service-account-private-key-file="$state/pki/sa.key" --root-ca-file="$state/pki/api/apiserver.crt" --use-service-account-credentials \
        --flex-volume-plugin-dir="$state/plugins"
    start kube-proxy "$bin/kube-proxy" --kubeconfig="$state/admin.kubeconfig" --hostname-override=node --proxy-mode=iptables --cluster-cidr="$pods4" \
        --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
    start kubelet "$bin/kubelet" --kubeconfig="$state/node.kubeconfig" --hostname-override=node --node-ip="$address" --container-runtime=remote \
        --container-runtime-endpoint="unix://$socket" --cgroup-driver=cgroupfs --cgroups-per-qos=true --cgroup-root="$cgroup" \
        --enforce-node-allocatable= --fail-swap-on=false --root-dir="$state/kubelet" --cert-dir="$state/kubelet/pki" \
        --pod-manifest-path="$state/manifests" --volume-plugin-dir="$state/plugins" --eviction-hard= --image-gc-high-threshold=100 \
        --anonymous-auth=true --authorization-mode=AlwaysAllow --resolv-conf= --runtime-cgroups=/ --kubelet-cgroups=/ -v=2
    await 90 "the node is not Ready" ready
    # Pods are refused until the controller manager has made this.
    await 60 "the default service account" "$bin/kubectl" get serviceaccount default
}

case ${1:-} in
hold)
    bin=$2 cgroup=$3 address=$4
    case $cgroup in /afp-test-?*/?*) ;; *) echo "node.sh: $cgroup is no cgroup of the harness" >&2; exit 1 ;; esac
    trap down EXIT
    # Ignored, but not by what we start: the end comes through our input. (`trap ''` would be inherited by the pods.)
    trap : HUP INT TERM
    sweep_cgroups
    prepare
    up
    echo ready
    cat > /dev/null
    ;;
image)
    shift
    import_image "$@"
    ;;
*)
    echo "usage: see the head of $0" >&2
    exit 2
    ;;
esac
