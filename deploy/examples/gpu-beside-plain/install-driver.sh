#!/bin/bash
# NVIDIA's driver from Debian's own packages. The kernel and its headers come as meta packages: an upgrade of the kernel
# then brings the headers that dkms builds the driver with.
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
# Google's images run the kernel for clouds.
case $(uname -r) in
  *-cloud-amd64) kernel=cloud-amd64 ;;
  *) kernel=amd64 ;;
esac
apt-get update
apt-get install --yes --no-install-recommends "linux-image-$kernel" "linux-headers-$kernel" \
  nvidia-kernel-dkms nvidia-smi libcuda1
# The driver was built for the newest kernel. If another one runs, the VM restarts, and this script runs again.
if ! modprobe nvidia; then
  newest=$(linux-version list | linux-version sort | tail -n 1)
  if [[ $newest != "$(uname -r)" ]]; then
    echo "the driver is for kernel $newest: restarting the VM"
    systemctl reboot
    sleep 300
  fi
  exit 1
fi
nvidia-smi
