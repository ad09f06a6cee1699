# What a test kernel runs once it sees the machine's files: kernel file systems, modules, then the suites one after the
# other. Lines that begin with `afp-guest:` are for the other side. @..@ is replaced before the start.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 CI=true RUST_BACKTRACE=0
# Emulation is slower than any machine.
export AGENT_FIPS_PROXY_TEST_PATIENCE=@PATIENCE@
export AGENT_FIPS_PROXY_BIN="@PROXY@"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# No bpffs, as on hosts without a service manager: the suites mount their own, and take it away.
mount -t tmpfs -o mode=755 run /run
case "@ROOT@:@PROXY@" in
    # The suites lie there: the overlay takes what is written.
    /tmp/* | *:/tmp/*) ;;
    *) mount -t tmpfs -o mode=1777 tmp /tmp ;;
esac
mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    ln -sfn "${link#*:}" "/dev/${link%%:*}"
done
# The kernel looks for modules and their loader at fixed places.
release=$(uname -r)
mkdir -p /lib/modules
ln -sfn "@MODULES@/$release" "/lib/modules/$release"
ln -sfn "@KMOD@" /sbin/modprobe
for module in @WANTED@; do
    modprobe "$module" || echo "afp-guest: no module $module"
done
ip link set lo up
ulimit -n 65536
cd "@ROOT@/tests" || exit 1
echo "afp-guest: kernel $release"
while read -r suite program filter; do
    echo "afp-guest: begin $suite"
    # shellcheck disable=SC2086
    "$program" $filter < /dev/null 2>&1
    echo "afp-guest: end $suite $?"
done < "@RUN@/suites"
echo "afp-guest: done"
sync
# The machine's own `poweroff` wants a service manager.
exec "@BUSYBOX@" poweroff -f
