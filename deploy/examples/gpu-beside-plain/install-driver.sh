#!/bin/bash
# NVIDIA's driver from Debian's own packages, built for the running kernel.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC1091 # the VM's
. /etc/os-release
cat >/etc/apt/sources.list.d/nvidia.sources <<SOURCES
Types: deb
URIs: https://deb.debian.org/debian
Suites: $VERSION_CODENAME
Components: contrib non-free non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
apt-get update
apt-get install --yes --no-install-recommends "linux-headers-$(uname -r)" nvidia-kernel-dkms nvidia-smi libcuda1
modprobe nvidia
nvidia-smi
