#!/bin/sh
# What the guest agent has done in other machines, in one without it: run by cloud-init as root at the end of the first
# boot, in the folder $1 of what the host gives. Each step is told on a port, with its exit code and the end of what it
# wrote; the host reads what is there when it likes, so nothing waits for it.
set -u
cd "$1" || exit
port=/dev/virtio-ports/org.qemuspawner.report.0
limit=65536

# "STEP CODE OUTPUT", the last as base64 in one line; `tail` has it from $output.
tell() {
    printf '%s %s %s\n' "$1" "$2" "$(tail -c "$limit" output | base64 | tr -d '\n')" >> "$port"
}

run() {
    step=$1
    shift
    timeout -s KILL 900 "$@" > output 2>&1
    tell "$step" "$?"
}

# As the desktop's user, in their home.
as_user() {
    step=$1
    shift
    run "$step" setpriv --reuid="$uid" --regid="$gid" --init-groups env -i \
        HOME="$home" USER="$name" LOGNAME="$name" LANG=C.UTF-8 PATH="$PATH" QEMUSPAWNER_SESSION="$QEMUSPAWNER_SESSION" \
        "$@"
}

# To $name and what stands behind it: whoever has the home $1 now.
find_account() {
    while IFS=: read -r name _ uid gid _ home _; do
        [ "$home" != "$1" ] || return 0
    done < /etc/passwd
    return 1
}

# Cloud images have few. cloud-init's own way of making one is a slow one, and fails in Debian 12.
make_language() {
    language=$QEMUSPAWNER_LANGUAGE
    [ -n "$language" ] && [ -e "/usr/share/i18n/locales/$language" ] || return 0
    # For whenever they are made anew.
    [ ! -f /etc/locale.gen ] || echo "$language.UTF-8 UTF-8" >> /etc/locale.gen
    localedef --inputfile="$language" --charmap=UTF-8 "$language.UTF-8"
}

# Whoever sees this screen was let in by the host. A machine with a desktop of its own logs in as it likes.
show_console() {
    systemctl --quiet is-enabled getty@tty1.service || return 0
    ! systemctl --quiet is-enabled display-manager.service || return 0
    mkdir -p /etc/systemd/system/getty@tty1.service.d
    printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin %s --noclear %%I $TERM\n' "$name" \
        > /etc/systemd/system/getty@tty1.service.d/qemuspawner.conf
    systemctl daemon-reload
    systemctl try-restart --no-block getty@tty1.service
}

finish() {
    : > output
    tell over 0
    rm -rf "$PWD"
}

. ./environment
# So that a later boot finds the same instance, when the volume is gone.
seed=/var/lib/cloud/seed/nocloud
mkdir -p "$seed"
cp meta-data user-data vendor-data "$seed/" > output 2>&1
tell copied "$?"

# cloud-init has made the image's own user, whose number is 1000 everywhere.
QEMUSPAWNER_HOME=$(getent passwd 1000 | cut -d : -f 6)
if [ -z "$QEMUSPAWNER_HOME" ]; then
    echo 'The image has no user of its own.' > output
    tell personal 1
    finish
    exit 1
fi
make_language > /dev/null 2>&1
sh ./personalise > output 2>&1
code=$?
tell personal "$code"
find_account "$QEMUSPAWNER_HOME"
# Not where they may be root against the host's word.
[ "$code" != 0 ] || show_console > /dev/null 2>&1

for file in gift-*; do
    [ -e "$file" ] || continue
    case $file in
        *-files) as_user files tar --extract --skip-old-files --no-same-owner --directory="$home" < "$file" ;;
        # Names of packages, so they may be split.
        *-packages) run packages sh ./install-packages $(cat "$file") ;;
        *-program) run program sh ./start-script "$limit" < "$file" ;;
    esac
done

if [ -e script ]; then
    : > output
    tell begin 0
    if [ "$QEMUSPAWNER_SUDO" = yes ]; then
        run script sh ./start-script "$limit" < script
    else
        as_user script sh -c "$(cat start-script)" start-script "$limit" < script
    fi
fi

if [ -z "$QEMUSPAWNER_CLOUD_CONFIG" ]; then
    finish
    exit 0
fi
# What the user gave to cloud-init itself is done after this.
: > output
tell begin 0
{
    timeout -s KILL 900 cloud-init status --wait --long > status 2>&1
    code=$?
    cat /var/log/cloud-init-output.log status > output 2>&1
    tell script "$code"
    finish
} < /dev/null > /dev/null 2>&1 &
