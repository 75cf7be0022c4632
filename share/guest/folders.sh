# Mounts and unmounts the host's folders. The guest agent runs this as root with a verb and the folders: tag, type,
# options and path of each. It says a line for each folder that failed: the tag, a space and why.
# It goes on below mounting.sh.

verb=$1 failed=
shift

is_mounted() {
    while read -r source _; do
        [ "$source" != "$1" ] || return 0
    done < /proc/mounts
    return 1
}

mount_folder() {
    ! is_mounted "$1" || return 0
    make_folder "$4" || return
    is_itself "$4" || {
        echo "its place is behind a link"
        return 1
    }
    # The device may still be on its way.
    tries=0
    until said=$(mount -t "$2" -o "$3" "$1" "$4" 2>&1); do
        tries=$((tries + 1))
        if [ "$tries" -ge 50 ]; then
            echo "$said"
            return 1
        fi
        sleep 0.1
    done
    while read -r source place _; do
        [ "$source" = "$1" ] || continue
        # Where a link has come in between, it is not at the path. Blanks are not told apart here, nor is a link.
        [ "$place" = "$4" ] || case $4 in *[[:space:]\\]*) ;; *)
            umount "$place"
            echo "its place is behind a link"
            return 1
            ;;
        esac
    done < /proc/mounts
}

unmount_folder() {
    is_mounted "$1" || return 0
    # A program that has just ended may not have let go of it.
    tries=0
    until said=$(umount "$4" 2>&1); do
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || break
        sleep 0.2
    done
    [ "$tries" -ge 5 ] || return 0
    if [ "$verb" = end ]; then
        end_users "$4"
    else
        name_users "$4"
        return 1
    fi
}

while [ $# -ge 4 ]; do
    case $verb in
        mount) words=$(mount_folder "$1" "$2" "$3" "$4" 2>&1) ;;
        *) words=$(unmount_folder "$1" "$2" "$3" "$4" 2>&1) ;;
    esac || {
        failed=1
        echo "$1" $words
    }
    shift 4
done
[ -z "$failed" ]
