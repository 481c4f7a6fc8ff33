#!/bin/sh
# Installs those of the named Debian packages that are missing here; no server is started or enabled.
# usage: [PYTHON=python3] tools/packages.sh PACKAGE...
set -eu

POLICY=/usr/sbin/policy-rc.d
POLICY_KEPT=$POLICY.heat-liveness-kept
CLUSTER_DIR=/etc/postgresql-common/createcluster.d
CLUSTER=$CLUSTER_DIR/heat-liveness.conf
PATH=$PATH:/usr/sbin:/sbin

# Whether the package's work can be done here, whoever installed it.
present() {
    case $1 in
        mariadb-server-core) command -v mariadbd && command -v mariadb-install-db ;;
        mariadb-client-core) command -v my_print_defaults ;;
        galera-4) ls /usr/lib/galera/libgalera_smm.so ;;
        postgresql) command -v postgres || ls /usr/lib/postgresql/*/bin/postgres ;;
        python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' ;;
        *) command -v "$1" ;;
    esac > /dev/null 2>&1
}

missing_of() {
    for package in "$@"; do
        present "$package" || printf ' %s' "$package"
    done
}

# The services that a package brings along, which Debian would start at the next boot.
units_of() {
    case $1 in
        haproxy) echo haproxy.service ;;
        postgresql) echo postgresql.service ;;
        rabbitmq-server) echo rabbitmq-server.service epmd.service epmd.socket ;;
    esac
}

# A kept policy that is already there is the original, left behind by a run that was killed.
forbid_starting() {
    if [ -e "$POLICY_KEPT" ] || [ -L "$POLICY_KEPT" ]; then
        rm -f "$POLICY"
    elif [ -e "$POLICY" ] || [ -L "$POLICY" ]; then
        mv "$POLICY" "$POLICY_KEPT"
    fi
    printf '#!/bin/sh\nexit 101\n' > "$POLICY"
    chmod 755 "$POLICY"
    mkdir -p "$CLUSTER_DIR"
    echo 'create_main_cluster = false' > "$CLUSTER"
}

restore() {
    rm -f "$POLICY" "$CLUSTER"
    rmdir --ignore-fail-on-non-empty --parents "$CLUSTER_DIR"
    if [ -e "$POLICY_KEPT" ] || [ -L "$POLICY_KEPT" ]; then
        mv "$POLICY_KEPT" "$POLICY"
    fi
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    forbid_starting
    trap restore EXIT
    trap 'exit 1' HUP INT TERM
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
    for package in "$@"; do
        for unit in $(units_of "$package"); do
            if command -v systemctl > /dev/null; then
                systemctl --quiet disable "$unit"
            elif [ -e "/etc/init.d/${unit%.service}" ]; then
                update-rc.d "${unit%.service}" disable
            fi
        done
    done
}

missing=$(missing_of "$@")
[ -n "$missing" ] || exit 0
if ! command -v apt-get > /dev/null; then
    echo "Install what provides$missing by hand: this machine has no apt-get." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo > /dev/null || ! { sudo -n true 2> /dev/null || [ -t 0 ]; }; then
        echo "Run as root: apt-get install$missing" >&2
        exit 1
    fi
    echo "Asking sudo to install$missing." >&2
    exec sudo PYTHON="${PYTHON:-python3}" "$0" "$@"
fi
echo "Installing the Debian packages$missing; no server is started or enabled." >&2
# shellcheck disable=SC2086
install $missing
missing=$(missing_of "$@")
if [ -n "$missing" ]; then
    echo "Still missing after apt-get install:$missing" >&2
    exit 1
fi
