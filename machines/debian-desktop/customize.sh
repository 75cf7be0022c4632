#!/bin/sh
# Runs on the host as root when all packages are installed; $1 is the new root folder.
set -eu
root=$1

in_root() {
    chroot "$root" "$@"
}

# The files of this recipe are laid over the root before the packages come, so /etc/skel is complete here.
in_root useradd --create-home --uid 1000 --shell /bin/bash --groups audio,input,sudo,video user
in_root passwd --lock root > /dev/null

# Dates, numbers and paper of the languages that the pages speak; programs speak English.
for locale in en_US fr_FR de_DE; do
    in_root localedef --inputfile="$locale" --charmap=UTF-8 "$locale.UTF-8"
done
rm -rf "$root/usr/share/i18n"

in_root systemctl --quiet enable \
    desktop.service desktop-clipboard.service desktop-resize.service desktop-sound.service \
    systemd-networkd.service web-terminal.service

# A desktop of one person that lives for hours: each of these costs boot time and brings nothing, as NFS of version 4
# needs none of its helpers. systemd-logind stays: it turns the power button into a shutdown.
in_root systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-pstore.service systemd-timesyncd.service systemd-networkd-wait-online.service \
    getty@tty1.service console-getty.service keyboard-setup.service console-setup.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-sysusers.service \
    alsa-restore.service alsa-state.service \
    systemd-network-generator.service kmod-static-nodes.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@loop.service \
    shellinabox.service \
    dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount \
    nfs-blkmap.service nfs-client.target rpc-gssd.service rpc-statd.service rpc-statd-notify.service \
    rpcbind.service rpcbind.socket run-rpc_pipefs.mount
