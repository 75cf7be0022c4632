# Mounts and unmounts a folder of a server. The guest agent runs this as root with a verb (mount, unmount or end), where
# the folder is mounted, and where it is shown; to mount it also with the program that does so. That reads the password
# from the standard input, so that it is in no file and in no list of processes.
# It goes on below mounting.sh. It says why something failed.

verb=$1 real=$2 place=$3
shift 3
SILENT_S=25

is_mounted() {
    escaped=$(printf %s "$1" | sed 's/\\/\\134/g; s/ /\\040/g')
    while read -r _ where _; do
        [ "$where" != "$escaped" ] || return 0
    done < /proc/mounts
    return 1
}

# What was started for it and still runs: SSHFS as long as it is mounted, all others while they try.
stop_programs() {
    for found in $(grep -s -l -F -e "$real" /proc/[0-9]*/cmdline); do
        found=${found#/proc/} found=${found%/cmdline}
        # One that has ended meanwhile is as good; grep itself always has.
        [ "$found" = $$ ] || kill -s KILL "$found" || true
    done 2> /dev/null
}

# At once, also where the server is silent: then who unmounts waits for it still when it is no longer mounted.
let_go() {
    for one in "$place" "$real"; do
        is_mounted "$one" || continue
        { umount -i -f -l "$one" || umount -i -l "$one"; } < /dev/null > /dev/null 2>&1 &
        tries=0
        while is_mounted "$one" && [ "$tries" -lt 25 ]; do
            tries=$((tries + 1))
            sleep 0.2
        done
    done
    stop_programs
}

# A guest that has just booted may still be about to ask for its address.
wait_for_network() {
    tries=0
    while [ "$(wc -l < /proc/net/route)" -le 1 ] && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.2
    done
}

mount_folder() {
    let_go
    # Nobody but root gets through here: it is mounted below, and only then shown at its place.
    mkdir -p "${real%/*}" && chmod 700 "${real%/*}" && mkdir -p "$real" && make_folder "$place" || return
    [ -z "${HOST_KEY-}" ] || echo "qemuspawner $HOST_KEY" > "$real.hosts"
    rm -f "$real.log"
    [ "$1" != sshfs ] || [ -e /dev/fuse ] || modprobe fuse
    wait_for_network
    # Into a file: SSHFS goes on in the background, and would keep a pipe open.
    timeout -k 1 "$SILENT_S" "$@" > "$real.said" 2>&1
    case $? in
        0) ;;
        124 | 137)
            let_go
            echo @silent
            return 1
            ;;
        *)
            cat "$real.said" "$real.log" 2> /dev/null
            let_go
            return 1
            ;;
    esac
    # By the folder that is there, not by its path: in that somebody could put a link after we have looked.
    if ! (cd -P "$place" && [ "$(pwd -P)" = "$place" ] && mount -c --bind "$real" .); then
        let_go
        echo @link
        return 1
    fi
}

# Whether it is busy for a program that uses it, rather than for a server that is silent.
answers() {
    timeout -k 1 4 stat -f "$real" > /dev/null 2>&1
}

unmount_folder() {
    if is_mounted "$place" && answers; then
        # Without the helpers of file systems, which ask servers of names for the server's.
        said=$(umount -i "$place" 2>&1) || case $verb in
            unmount)
                name_users "$place"
                return 1
                ;;
            *) end_users "$place" > /dev/null ;;
        esac
        # What was written goes to the server first.
        ! is_mounted "$real" || timeout -k 1 5 umount -i "$real" 2> /dev/null
    fi
    let_go
}

case $verb in
    mount) mount_folder "$@" ;;
    *) unmount_folder ;;
esac
