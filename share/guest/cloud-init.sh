#!/bin/sh
# Has the guest's cloud-init carry out what comes on standard input, a #cloud-config, as at the first boot of a new
# instance: by its NoCloud source, which is a folder. Run by the guest agent as root in a new desktop, whether that was
# booted or restored; the end of what it says is read, at most $1 bytes.
set -u
if ! command -v cloud-init > /dev/null; then
    echo 'The machine has no cloud-init.'
    exit 127
fi
seed=/var/lib/cloud/seed/nocloud
umask 077
mkdir -p "$seed" /etc/cloud/cloud.cfg.d || exit
cat > "$seed/user-data" || exit
printf 'instance-id: qemuspawner-%s\n' "$QEMUSPAWNER_SESSION" > "$seed/meta-data" || exit
# The host has given it its name, its network and its account; what the user asks for still counts.
cat > /etc/cloud/cloud.cfg.d/99-qemuspawner.cfg << 'END' || exit
datasource_list: [NoCloud, None]
network: {config: disabled}
preserve_hostname: true
ssh_deletekeys: false
users: []
END
umask 022
folder=$(mktemp -d /var/tmp/cloud-init.XXXXXX) || exit
failed=0
for stage in 'init --local' init 'modules --mode=config' 'modules --mode=final'; do
    # Words, so they are to be split.
    cloud-init $stage || failed=$?
done > "$folder/output" 2>&1 < /dev/null
tail -c "$1" "$folder/output"
rm -rf "$folder"
exit "$failed"
