#!/bin/sh
# Runs on the host as root when all packages are installed, after the demo machine's own; $1 is the new root folder.
set -eu
root=$1

# On the desktop what people come for; everything else is in the menu of applications, and on the form.
shortcuts() {
    for name in org.silx.silx-view vitables org.hdfgroup.hdf-compass pymca pyFAI-calib2 imagej gwyddion fityk jupyter-notebook spyder; do
        for file in "$root/usr/share/applications/$name".desktop; do
            if [ -e "$file" ]; then
                install -m 755 "$file" "$1"
            fi
        done
    done
}
shortcuts "$root/etc/skel/Desktop"
shortcuts "$root/home/user/Desktop"
chown -R 1000:1000 "$root/home/user/Desktop"

chroot "$root" systemctl --quiet enable jupyter.service
# Java would ask a screen reader that is not there.
rm -f "$root/etc/java-17-openjdk/accessibility.properties"
