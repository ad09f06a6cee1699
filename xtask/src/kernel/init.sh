#!/bin/busybox sh
# First program of a test kernel: finds the share of the machine's files, lays a memory file system over it (the share is
# read-only, and stays so), and goes on with the suites there. @RUN@ is replaced by the folder of this run.
bb=/bin/busybox
$bb mkdir -p /proc /lower /rw /new
$bb mount -t proc proc /proc
for module in $($bb cat /modules/order); do
    $bb insmod "/modules/$module" || echo "afp-guest: cannot load $module"
done
$bb mount -t virtiofs -o ro share /lower || {
    echo "afp-guest: cannot mount the share of the machine's files"
    exec $bb poweroff -f
}
$bb mount -t tmpfs -o mode=755 rw /rw
$bb mkdir /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new || exec $bb poweroff -f
$bb cp $bb /rw/busybox
$bb mkdir -p /new/dev /new/proc
$bb mount -t devtmpfs dev /new/dev
$bb umount /proc
exec $bb switch_root /new /bin/sh "@RUN@/guest.sh"
echo "afp-guest: switch_root failed"
exec $bb poweroff -f
