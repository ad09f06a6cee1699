# The first process of a machine of namespaces: makes what systemd expects, and becomes it. $1 is a folder with units/, and, where $2 is
# `installed`, etc/, sysusers.conf and the program. `bare` leaves that to a package manager. What the real machine's kernel is told (/proc/sys, /sys) stays as it is.
set -e
folder=$1
kind=$2
layers="etc usr/bin var/lib"
[ "$kind" = installed ] || layers="etc usr var"
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
mount -t tmpfs -o mode=0755 run /run
mkdir /run/machine
cp -r "$folder/." /run/machine/
cp /etc/hosts /etc/resolv.conf /run/machine/
for path in $layers; do
    mkdir -p /run/machine/over/$path/upper /run/machine/over/$path/work
    mount -t overlay -o "lowerdir=/$path,upperdir=/run/machine/over/$path/upper,workdir=/run/machine/over/$path/work" overlay /$path
done
# What was mounted over single files is not in the layer below.
cp /run/machine/hosts /run/machine/resolv.conf /etc/
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 tmp /var/tmp
mount -t tmpfs -o mode=0755 dev /dev
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $node
    mknod -m 0666 /dev/$1 c $2 $3
done
mkdir /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
set --
if [ "$kind" = installed ]; then
    mkdir -p /etc/agent-fips-proxy
    mv /run/machine/etc/* /etc/agent-fips-proxy/
    install -m 0755 /run/machine/program /usr/bin/agent-fips-proxy
    rm /run/machine/program
    systemd-sysusers /run/machine/sysusers.conf
    set -- SYSTEMD_UNIT_PATH=/run/machine/units
else
    # Of units only those of the harness and of what is installed; they are looked for where they always are.
    for path in /etc/systemd/system /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
        mount -t tmpfs -o mode=0755 units $path
    done
    mkdir /run/systemd
    ln -s /run/machine/units /run/systemd/system
    # An image's "start nothing" is not this machine's.
    rm -f /usr/sbin/policy-rc.d
fi
# `container=`: it leaves alone what is the whole machine's.
exec env -i container=harness PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C "$@" \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
