#!/bin/sh
# Makes the guest a machine unlike its twins, and its user's own. The guest agent runs this as root after each
# start, cloud-init once where there is no agent; with the argument "rehearse", before a template is saved, it only has its programs ready in memory.
# Every value is in the environment and may hold anything. Beyond a POSIX shell nothing is sure to be there.
set -u

folder=/run/qemuspawner
marker=$folder/personalised
log=$folder/log
kept=/var/lib/qemuspawner/session # survives a boot, where the disk does
hook_limit_s=20
login_limit_s=60
failed=

has() {
    command -v "$1" > /dev/null 2>&1
}

fail() {
    failed=${failed:+$failed, }$1
}

# Whether the first line of file $1 is $2.
holds() {
    line=
    [ -f "$1" ] && { IFS= read -r line < "$1" || [ -n "$line" ]; } && [ "$line" = "$2" ]
}

# A restored guest's clock always stands where it was saved; one that was booted is right already. At the end of a
# first boot the time that it was told at its beginning is not right any more.
set_clock() {
    [ "$QEMUSPAWNER_WAY" != seed ] || return 0
    now=${QEMUSPAWNER_NOW%.*}
    if [ "$QEMUSPAWNER_WAY" = cold ]; then
        clock=$(date +%s)
        case $((now - ${clock:-0})) in -1 | 0 | 1) return 0 ;; esac
    fi
    # Busybox may know whole seconds only.
    date -s "@$QEMUSPAWNER_NOW" 2> /dev/null || date -s "@$now"
} > /dev/null

# The kernel has renewed its randomness by itself where it knows vmgenid; this is for all others.
stir_randomness() {
    printf '%s' "$QEMUSPAWNER_SEED" > /dev/urandom
}

# In place: the file may be a mount. A guest that has none needs none.
set_machine_id() {
    [ -f /etc/machine-id ] || return 0
    printf '%s\n' "$QEMUSPAWNER_MACHINE_ID" > /etc/machine-id || return
    # D-Bus had its own before systemd came.
    [ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] ||
        printf '%s\n' "$QEMUSPAWNER_MACHINE_ID" > /var/lib/dbus/machine-id
}

# What the next boot begins with. In place, so that it stays root's alone.
replace_random_seed() {
    for seed in /var/lib/systemd/random-seed /var/lib/urandom/random-seed; do
        [ ! -f "$seed" ] || printf '%s' "$QEMUSPAWNER_BOOT_SEED" > "$seed" || return
    done
}

# The shared ones are gone at once.
delete_host_keys() {
    set -- /etc/ssh/ssh_host_*_key
    [ -e "$1" ] && has ssh-keygen || return 0
    rm -f "$@" /etc/ssh/ssh_host_*_key.pub
}

# Making keys takes a slow guest seconds, so that goes on behind. A guest that is switched off or killed
# meanwhile has none, so each start looks.
make_host_keys() {
    has sshd && has ssh-keygen || return 0
    set -- /etc/ssh/ssh_host_*_key
    [ ! -e "$1" ] || return 0
    # The agent waits until its pipes are closed.
    { ssh-keygen -A && restart_sshd; } < /dev/null >> "$log" 2>&1 &
}

# It has the old keys in its memory until then, or did not start for want of any.
restart_sshd() {
    if has systemctl; then
        for unit in ssh.service sshd.service; do
            systemctl try-restart "$unit"
            systemctl is-failed --quiet "$unit" || continue
            systemctl reset-failed "$unit"
            systemctl start "$unit"
        done
    elif [ -s /run/sshd.pid ]; then
        kill -HUP "$(cat /run/sshd.pid)"
    fi
}

# What stays the same when the session's own disk is booted again.
become_another() {
    ! holds "$kept" "$QEMUSPAWNER_SESSION" || return 0
    set_machine_id || fail 'machine-id'
    delete_host_keys || fail 'SSH host keys'
    replace_random_seed || fail 'random seed'
    # What failed is tried again at the next start. A clock that cannot be set changes nothing in all this.
    case $failed in
        '' | clock) printf '%s\n' "$QEMUSPAWNER_SESSION" > "$kept" || fail "$kept" ;;
    esac
}

# Only where the image says that nothing there depends on the name; X cookies usually do.
rename_host() {
    [ -e /etc/qemuspawner/rename ] || return 0
    printf '%s\n' "$QEMUSPAWNER_HOST_NAME" > /proc/sys/kernel/hostname || return
    printf '%s\n' "$QEMUSPAWNER_HOST_NAME" > /etc/hostname || return
    [ -f /etc/hosts ] || return 0
    # At Debian's address for it. The old name stays where it is, for programs that know no other.
    others=
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '127.0.1.1 '* | '127.0.1.1	'*) ;;
            *) others="$others$line
" ;;
        esac
    done < /etc/hosts
    printf '%s127.0.1.1 %s\n' "$others" "$QEMUSPAWNER_HOST_NAME" > /etc/hosts
}

# The account of the machine's one person, to $account and what stands behind it: whose home the machine names, or the
# first that is no system account.
find_account() {
    account=
    [ -f /etc/passwd ] || return 0
    while IFS=: read -r name _ number group about folder _; do
        if [ -n "$QEMUSPAWNER_HOME" ]; then
            [ "$folder" = "$QEMUSPAWNER_HOME" ] || continue
        else
            [ "$number" = 1000 ] || continue
        fi
        account=$name uid=$number gid=$group comment=$about home=$folder
        return
    done < /etc/passwd
}

# To $comment: only the name; behind a comma come room and telephone.
name_account() {
    [ -n "$QEMUSPAWNER_FULL_NAME" ] && [ -n "$account" ] && has usermod || return 0
    case $comment in
        "$QEMUSPAWNER_FULL_NAME" | "$QEMUSPAWNER_FULL_NAME",*) return 0 ;;
        *,*) comment=$QEMUSPAWNER_FULL_NAME,${comment#*,} ;;
        *) comment=$QEMUSPAWNER_FULL_NAME ;;
    esac
    # Else it changes together with all the rest: each call costs a slow guest a good part of a second.
    will_log_in || usermod --comment "$comment" "$account"
}

will_log_in() {
    [ "$QEMUSPAWNER_LOGIN" = user ] &&
        [ "$account:$uid:$gid" != "$QEMUSPAWNER_ACCOUNT:$QEMUSPAWNER_UID:$QEMUSPAWNER_GID" ]
}

# The machine's account becomes the hub's user, who is logged in anew: what runs has its numbers for good. Its home
# stays where everybody looks for it, and can be found by the new name, too.
log_in() {
    will_log_in || return 0
    if [ -z "$account" ] || { [ "$QEMUSPAWNER_WAY" != seed ] && [ ! -x /etc/qemuspawner/login ]; }; then
        echo 'The image has no account or no /etc/qemuspawner/login for it.'
        return 1
    fi
    is_free passwd "$QEMUSPAWNER_ACCOUNT" "$account" && is_free passwd "$QEMUSPAWNER_UID" "$account" || return
    hook_limit_s=$login_limit_s
    QEMUSPAWNER_FORMER=$uid
    export QEMUSPAWNER_FORMER
    run_login stop || return
    change_account
    changed=$?
    # Whoever it is now: better than a screen without anybody.
    run_login start && return "$changed"
}

# At the end of cloud-init's first boot nobody is logged in yet.
run_login() {
    [ "$QEMUSPAWNER_WAY" = seed ] || run_hook /etc/qemuspawner/login "$1"
}

# Whether nobody but $3 has the name or number $2 in the database $1.
is_free() {
    case $(getent "$1" "$2") in
        '' | "$3:"*) return 0 ;;
    esac
    echo "The machine has a $1 entry $2 of its own."
    return 1
}

change_account() {
    own_group=$(getent group "$gid") || return
    own_group=${own_group%%:*}
    # The group's name is for the eye alone.
    new_name=$own_group
    [ "$own_group" != "$account" ] || ! is_free group "$QEMUSPAWNER_ACCOUNT" "$own_group" > /dev/null ||
        new_name=$QEMUSPAWNER_ACCOUNT
    if [ "$gid:$own_group" != "$QEMUSPAWNER_GID:$new_name" ]; then
        is_free group "$QEMUSPAWNER_GID" "$own_group" || return
        groupmod --gid "$QEMUSPAWNER_GID" --new-name "$new_name" "$own_group" || return
    fi
    add_groups || return
    usermod --login "$QEMUSPAWNER_ACCOUNT" --uid "$QEMUSPAWNER_UID" --comment "$comment" \
        --append --groups "$groups" "$account" || return
    find "$home" -xdev \( -uid "$uid" -o -gid "$gid" \) \
        -exec chown -h "$QEMUSPAWNER_UID:$QEMUSPAWNER_GID" {} + || return
    # Whoever gets the number later is not to have them.
    find /tmp /var/tmp -xdev -uid "$uid" -delete
    account=$QEMUSPAWNER_ACCOUNT uid=$QEMUSPAWNER_UID gid=$QEMUSPAWNER_GID
    if [ -d /home ] && [ ! -e "/home/$account" ] && [ ! -L "/home/$account" ]; then
        ln -s "$home" "/home/$account"
    fi
}

# "NAME:GID NAME:GID", to $groups by their names in the guest. The numbers are what counts on shared disks, so a group
# that is there keeps its own name.
add_groups() {
    groups=
    for group in $QEMUSPAWNER_GROUPS; do
        entry=$(getent group "${group#*:}") || entry=
        if [ -z "$entry" ]; then
            name=${group%%:*}
            [ -z "$(getent group "$name")" ] || name=g${group#*:}
            groupadd --gid "${group#*:}" "$name" || return
            entry=$name:
        fi
        groups=${groups:+$groups,}${entry%%:*}
    done
}

# By number, which needs no quoting, and in the file that is read last, so that nothing in the image says otherwise.
# Who may switch their desktop off on its page may do so inside.
set_sudo() {
    case $QEMUSPAWNER_SUDO in
        yes) rule='NOPASSWD: ALL' ;;
        no) rule='!ALL, NOPASSWD: /usr/bin/systemctl poweroff' ;;
        *) return 0 ;;
    esac
    [ -n "$account" ] || return
    if [ "$QEMUSPAWNER_SUDO" = no ]; then
        # pkexec and others ask these.
        memberships=$(id -Gn "$account" 2> /dev/null)
        # It also complains of a group that has no name.
        [ -n "$memberships" ] || return
        for group in sudo wheel admin; do
            case " $memberships " in
                *" $group "*) gpasswd --delete "$account" "$group" > /dev/null || return ;;
            esac
        done
        [ -d /etc/sudoers.d ] || return 0
    fi
    umask 337
    # A name with a dot is not read.
    printf '#%s ALL=(ALL:ALL) %s\n' "$uid" "$rule" > /etc/sudoers.d/.new &&
        mv /etc/sudoers.d/.new /etc/sudoers.d/zz-qemuspawner
    written=$?
    umask 022
    return "$written"
}

# Where the image has the language, also as another country speaks it; else it stays as it is.
set_language() {
    [ -n "$QEMUSPAWNER_LANGUAGE" ] && has locale || return 0
    best=
    for name in $(locale -a); do
        case $name in
            "$QEMUSPAWNER_LANGUAGE".[Uu][Tt][Ff]*) best=$name && break ;;
            "${QEMUSPAWNER_LANGUAGE%_*}"_*.[Uu][Tt][Ff]*) best=${best:-$name} ;;
        esac
    done
    [ -n "$best" ] || return 0
    # Debian's file where it is Debian, else systemd's.
    if [ -d /etc/default ]; then
        printf 'LANG=%s\n' "$best" > /etc/default/locale
    else
        printf 'LANG=%s\n' "$best" > /etc/locale.conf
    fi
}

run_hooks() {
    for hook in /etc/qemuspawner/personalise.d/*; do
        # Not what editors and packages leave behind.
        case $hook in *'~' | *.dpkg-* | *.rpmnew | *.rpmsave) continue ;; esac
        [ -f "$hook" ] && [ -x "$hook" ] || continue
        run_hook "$hook" < /dev/null >> "$log" 2>&1 || fail "${hook##*/}"
    done
}

run_hook() {
    echo "== $*"
    if has timeout; then
        timeout -s KILL "$hook_limit_s" "$@"
    else
        "$@"
    fi
}

# Read from the disk by a slow guest, they would cost each copy of the template 2 s.
rehearse() {
    mkdir -p "$folder" "${kept%/*}"
    date -u
    ! has timeout || timeout 1 true
    ! has usermod || usermod --help
    ! has groupmod || groupmod --help
    ! has locale || locale -a
    ! has getent || getent passwd root
    ! has tail || tail -c 1 /dev/null
}

if [ "${1-}" = rehearse ]; then
    rehearse > /dev/null 2>&1
    exit 0
fi

set_clock || fail 'clock'
stir_randomness || fail 'randomness'

umask 022
[ -d "$folder" ] || mkdir -p "$folder" "${kept%/*}" || exit
umask 077
: > "$log" || exit
umask 022

# A marker of an earlier boot does not count, wherever it lies.
boot=
[ ! -f /proc/sys/kernel/random/boot_id ] || read -r boot < /proc/sys/kernel/random/boot_id
if holds "$marker" "$QEMUSPAWNER_SESSION $boot"; then
    make_host_keys
    find_account
    # The site may have thought better of it while the guest slept.
    set_sudo || fail 'sudo'
else
    # cloud-init does as much by itself.
    if [ "$QEMUSPAWNER_WAY" != seed ]; then
        become_another
        make_host_keys
        rename_host || fail 'host name'
    fi
    find_account
    name_account || fail 'full name'
    set_language || fail 'language'
    (log_in) < /dev/null >> "$log" 2>&1 || fail 'login'
    find_account
    set_sudo || fail 'sudo'
    unset QEMUSPAWNER_NOW QEMUSPAWNER_SEED QEMUSPAWNER_BOOT_SEED QEMUSPAWNER_MACHINE_ID
    run_hooks
    [ -n "$failed" ] || printf '%s\n' "$QEMUSPAWNER_SESSION $boot" > "$marker" || fail "$marker"
fi

[ -n "$failed" ] || exit 0
# The end is enough: the agent's answers are bounded.
! has tail || tail -c 2000 "$log"
printf '%s\n' "$failed"
exit 1
