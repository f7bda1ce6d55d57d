#!/bin/sh

# Build the appliance as one self-booting disk image, with Debian's tools alone: build-image.sh [TARGET.qcow2]
#
# As root, on Debian or Ubuntu; from the network it takes Debian packages, and what `make pyz` takes. Settings, as environment:
#   DDUCT_IMAGE_SUITE    the Debian release inside (bookworm)
#   DDUCT_IMAGE_MIRROR   where its packages come from: a URL, or a file of apt sources
#                        (the sources of this machine if it runs that release, else deb.debian.org)
#   DDUCT_IMAGE_SIZE     size of the disk, in MiB (8192); the file is much smaller, and a VM may have a larger disk

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(CDPATH='' cd -- "$here/../.." && pwd)
suite=${DDUCT_IMAGE_SUITE:-bookworm}
size=${DDUCT_IMAGE_SIZE:-8192}
grub=/usr/lib/grub/i386-pc

fail() {
    echo "build-image.sh: $*" >&2
    exit 1
}

version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' "$top/dduct.py")
target=${1:-$top/dist/dduct-$version.qcow2}

case "$size" in *[!0-9]* | '') fail "DDUCT_IMAGE_SIZE=$size: expected a number of MiB" ;; esac
[ "$size" -ge 2048 ] || fail "DDUCT_IMAGE_SIZE=$size: expected at least 2048 MiB"
case "$suite" in *[!a-z]* | '') fail "DDUCT_IMAGE_SUITE=$suite: expected the name of a Debian release such as bookworm" ;; esac
case "$target" in *.qcow2) ;; *) fail "$target: expected a name that ends in .qcow2" ;; esac
[ "$(dpkg --print-architecture 2> /dev/null)" = amd64 ] || fail "expected Debian or Ubuntu on amd64"

missing=
need() {
    command -v "$1" > /dev/null || [ -e "$1" ] || { echo "build-image.sh: $1 is missing: apt-get install $2" >&2; missing=yes; }
}
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need sfdisk fdisk
need grub-mkimage grub-common
need "$grub/boot.img" grub-pc-bin
need qemu-img qemu-utils
need uuidgen uuid-runtime
need python3 python3
need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
[ -z "$missing" ] || exit 1
[ "$(id -u)" -eq 0 ] || fail "expected to run as root, for mmdebstrap and the owners of the files in the image"

# The apt sources of this machine that are of that release, one file of them or more.
own_sources() {
    . /etc/os-release
    [ "${ID:-}" = debian ] && [ "${VERSION_CODENAME:-}" = "$suite" ] || return 0
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || ! grep -qE "(^deb .* |^Suites:.* )$suite( |\$)" "$file" || echo "$file"
    done
}
mirror=${DDUCT_IMAGE_MIRROR:-$(own_sources)}

work=$(mktemp -d "${TMPDIR:-/var/tmp}/dduct-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
started=$(date +%s)
step() {
    echo "=== $* ($(($(date +%s) - started)) s)"
}

step "the program"
python3 "$top/packaging/pyz.py" "$work/dduct.pyz"

step "Debian $suite"
packages=$(grep -v '^#' "$here/image/packages" | paste -sd,)
export DDUCT_IMAGE_FILES="$here" DDUCT_IMAGE_PYZ="$work/dduct.pyz" DDUCT_IMAGE_SUITE="$suite"
# Several files of sources are several arguments, and without any mmdebstrap takes deb.debian.org.
# shellcheck disable=SC2086
mmdebstrap --quiet --mode=root --variant=minbase --architectures=amd64 --include="$packages" \
    --dpkgopt="$here/image/dpkg.cfg" --essential-hook="$here/image/before-packages" --customize-hook="$here/image/customize" \
    "$suite" "$work/root" $mirror

step "the disk"
uuid=$(uuidgen)
mkdir -p "$work/root/boot/grub"
cat > "$work/root/boot/grub/grub.cfg" << GRUB
# Debian keeps /vmlinuz and /initrd.img on the newest kernel.
set timeout=0
menuentry dduct {
    search --no-floppy --fs-uuid --set=root $uuid
    linux /vmlinuz root=UUID=$uuid ro net.ifnames=0 biosdevname=0 console=tty0 console=ttyS0,115200
    initrd /initrd.img
}
GRUB
printf 'UUID=%s / ext4 defaults,errors=remount-ro 0 1\n' "$uuid" > "$work/root/etc/fstab"
truncate -s "${size}M" "$work/disk.raw"
printf 'label: dos\nstart=2048, type=83, bootable\n' | sfdisk --quiet "$work/disk.raw"
# GRUB does not read what newer defaults of mke2fs would make.
mke2fs -q -F -t ext4 -O '^metadata_csum_seed' -m 1 -L dduct-root -U "$uuid" -d "$work/root" -E offset=1048576 \
    "$work/disk.raw" "$((size - 1))M"
rm -rf "$work/root"
# shellcheck disable=SC2016  # GRUB's own variable
printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/boot/grub\n' "$uuid" > "$work/early.cfg"
grub-mkimage -O i386-pc -d "$grub" -o "$work/core.img" -c "$work/early.cfg" -p '(hd0,msdos1)/boot/grub' \
    biosdisk part_msdos ext2 normal linux search search_fs_uuid configfile
[ "$(stat -c %s "$work/core.img")" -lt $((2047 * 512)) ] || fail "the boot loader does not fit before the partition"
dd if="$grub/boot.img" of="$work/disk.raw" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$work/disk.raw" bs=512 seek=1 conv=notrunc status=none

step "$target"
mkdir -p "$(dirname -- "$target")"
qemu-img convert -c -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
rm "$work/disk.raw"
mv "$work/disk.qcow2" "$target"
step "done: $(stat -c %s "$target") bytes"
# What the marketplace wants to know of it.
printf 'size: %s\nmd5: %s\nsha256: %s\n' "$((size * 1048576))" "$(md5sum < "$target" | cut -d ' ' -f 1)" \
    "$(sha256sum < "$target" | cut -d ' ' -f 1)"
