#!/usr/bin/env bash

# Undo the password login of gen_context: the image accepts keys only.

set -eux -o pipefail

rm -f /etc/ssh/sshd_config.d/00-build.conf
cat > /etc/ssh/sshd_config.d/00-dduct.conf << 'SSHD'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
SSHD
# The settings that are read first are those that hold.
grep -q '^Include /etc/ssh/sshd_config.d/' /etc/ssh/sshd_config \
    || sed -i '1i Include /etc/ssh/sshd_config.d/*.conf' /etc/ssh/sshd_config
sshd -t
sync
