#!/bin/sh
# Installs the packages that are its arguments. Run by the guest agent as root, which reads the end of what that says.
has() {
    command -v "$1" > /dev/null
}

install() {
    if has apt-get; then
        apt-get --quiet update
        apt-get --quiet --yes --no-install-recommends install -- "$@"
    elif has dnf; then
        dnf --assumeyes install -- "$@"
    elif has zypper; then
        zypper --non-interactive install -- "$@"
    else
        echo 'The machine has neither apt-get nor dnf nor zypper.'
        return 127
    fi
}

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp /var/tmp/packages.XXXXXX) || exit
install "$@" > "$log" 2>&1 < /dev/null
code=$?
tail -c 2000 "$log"
rm -f "$log"
exit "$code"
