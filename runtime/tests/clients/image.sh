# The image of all steps: a static busybox. bb.tar is its root filesystem, image.tar an archive as of `docker save`.
root=/run/sandbox/rootfs
mkdir -p $root/{bin,etc,tmp,root,proc,sys,dev,mnt,var/tmp} && chmod 1777 $root/tmp || exit 1
chmod 700 $root/root
cp "$(command -v busybox)" $root/bin/busybox || exit 1
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
printf '%s\n' root:x:0:0:root:/root:/bin/sh web:x:1000:1000:web:/:/bin/sh >$root/etc/passwd
printf '%s\n' root:x:0: web:x:1000: disk:x:1001:web >$root/etc/group
echo text >$root/etc/not-executable
tar -C $root -cf /run/sandbox/bb.tar . || exit 1
