#!/usr/bin/env bash

# The dduct appliance: one VM that downloads every artefact once for all machines of a site.
#
# * Every input is judged before anything is written; a bad one leaves the last configuration as it was.
# * configure and bootstrap run at every boot, each in a process of its own, and take all they know from the context.
# * Only bootstrap starts dduct: a configuration that was not judged in this boot does not serve.

# shellcheck disable=SC2034  # the framework reads these
ONE_SERVICE_SETUP_DIR="/opt/one-appliance"

ONE_SERVICE_PARAMS=(
    'ONEAPP_DDUCT_LISTEN_ADDRESS'         'configure' 'Address to listen on, 0.0.0.0 for all IPv4 and :: for all'                           'O|text'
    'ONEAPP_DDUCT_LISTEN_PORT'            'configure' 'Port of the proxy, 0 for none'                                                       'O|number'
    'ONEAPP_DDUCT_LISTEN_TLS_PORT'        'configure' 'Port of the proxy inside TLS, 0 for none'                                            'O|number'
    'ONEAPP_DDUCT_LISTEN_IDLE_TIMEOUT'    'configure' 'Time after which an idle client connection is closed, such as 60s'                   'O|text'
    'ONEAPP_DDUCT_LISTEN_MAX_CONNECTIONS' 'configure' 'Client connections at the same time, for each core'                                  'O|number'
    'ONEAPP_DDUCT_KEEP_HOSTS'             'configure' 'Hosts to intercept, names, *.names and addresses'                                    'O|text'
    'ONEAPP_DDUCT_KEEP_FILTERS'           'configure' 'What to keep: regular expressions for the path of a URL'                             'O|text'
    'ONEAPP_DDUCT_KEEP_EXTRA_FILTERS'     'configure' 'What else to keep: regular expressions for the path of a URL'                        'O|text'
    'ONEAPP_DDUCT_CACHE_SIZE'             'configure' 'Space for the cache, such as 200G or 80%'                                            'O|text'
    'ONEAPP_DDUCT_CACHE_MIN_FREE'         'configure' 'Space that stays free on the disk, such as 1G or 5%'                                 'O|text'
    'ONEAPP_DDUCT_CACHE_FRESH_FOR'        'configure' 'Lifetime of an object if its origin states none, such as 12h or 1d'                  'O|text'
    'ONEAPP_DDUCT_CACHE_STALE_IF_ERROR'   'configure' 'Send a stale object when its origin cannot be asked'                                 'O|boolean'
    'ONEAPP_DDUCT_CACHE_OBEY_NO_STORE'    'configure' 'Obey no-store and private of origins'                                                'O|boolean'
    'ONEAPP_DDUCT_CACHE_AUTH_GRACE'       'configure' 'How long the permission of an origin for a client is remembered, 0 to ask each time' 'O|text'
    'ONEAPP_DDUCT_CACHE_DISK'             'configure' 'Disk for the cache, auto, none or a device such as /dev/vdb'                         'O|text'
    'ONEAPP_DDUCT_ACCESS_CLIENTS'         'configure' 'Networks that may use the proxy, empty for the network of the first NIC'             'O|text'
    'ONEAPP_DDUCT_ACCESS_USER'            'configure' 'User name that the proxy requires, empty for none'                                   'O|text'
    'ONEAPP_DDUCT_ACCESS_PASSWORD'        'configure' 'Password of that user, empty for a generated one'                                    'O|password'
    'ONEAPP_DDUCT_ACCESS_CLIENT_CERT'     'configure' 'Require a client certificate on the TLS port'                                        'O|boolean'
    'ONEAPP_DDUCT_UPSTREAM_PROXY'         'configure' 'Parent proxy, such as http://user:password@squid.lab:3128'                           'O|text'
    'ONEAPP_DDUCT_UPSTREAM_NO_PROXY'      'configure' 'Hosts that are reached without the parent proxy'                                     'O|text'
    'ONEAPP_DDUCT_UPSTREAM_CA'            'configure' 'Authorities to trust upstream, a PEM file in base64'                                 'O|text'
    'ONEAPP_DDUCT_UPSTREAM_INSECURE'      'configure' 'Hosts whose certificate is not verified'                                             'O|text'
    'ONEAPP_DDUCT_UPSTREAM_TIMEOUT'       'configure' 'Time after which a silent origin is given up, such as 30s'                           'O|text'
    'ONEAPP_DDUCT_CA_CERT'                'configure' 'Certificate of an authority of your own, PEM in base64'                              'O|text'
    'ONEAPP_DDUCT_CA_KEY'                 'configure' 'Its key, PEM in base64'                                                              'O|password'
    'ONEAPP_DDUCT_CA_NAME'                'configure' 'Name of the authority that the first boot makes'                                     'O|text'
    'ONEAPP_DDUCT_CA_CONSTRAINED'         'configure' 'Limit that authority to the hosts to intercept'                                      'O|boolean'
    'ONEAPP_DDUCT_LOG_LEVEL'              'configure' 'error, warn, info, debug or trace'                                                   'O|text'
)

ONE_SERVICE_NAME='Service dduct - KVM'
ONE_SERVICE_VERSION='0.1.0'
ONE_SERVICE_BUILD=$(date +%s)
ONE_SERVICE_SHORT_DESCRIPTION='Caching HTTPS proxy for container images and packages'
ONE_SERVICE_DESCRIPTION='dduct keeps every container layer and package that passes through it, so that each crosses the
uplink once. The URL of the proxy is published to OneGate as DDUCT_PROXY_URL and the certificate
that clients have to trust as DDUCT_CA_CERT. Both are in /etc/one-appliance/config.'
ONE_SERVICE_RECONFIGURABLE=true

### Places ########################################################################################

# A directory in place of /, for tests.
DDUCT_ROOT="${DDUCT_ROOT:-}"

DDUCT_PROGRAM="${DDUCT_ROOT}/usr/lib/dduct"
DDUCT_ETC="${DDUCT_ROOT}/etc/dduct"
DDUCT_STATE="${DDUCT_ROOT}/var/lib/dduct"
DDUCT_CERTS="${DDUCT_STATE}/certs"
DDUCT_UNITS="${DDUCT_ROOT}/etc/systemd/system"
DDUCT_REPORT="${ONE_SERVICE_REPORT:-${DDUCT_ROOT}/etc/one-appliance/config}"

DDUCT_PACKAGES=(ca-certificates curl e2fsprogs iproute2 openssl python3 python3-cryptography util-linux)

### Stages ########################################################################################

# The program comes as dduct.pyz and its unit as dduct.service, both in ONE_SERVICE_SETUP_DIR.
service_install()
{
    local source="${DDUCT_ROOT}${ONE_SERVICE_SETUP_DIR}" file
    for file in dduct.pyz dduct.service; do
        [[ -r "${source}/${file}" ]] || { fail '' "${source}/${file} is not there; put it there before the installation"; return 1; }
    done
    install_packages || return 1
    getent passwd dduct > /dev/null \
        || useradd --system --user-group --home-dir /var/lib/dduct --no-create-home --shell /usr/sbin/nologin dduct \
        || { fail '' 'the user dduct cannot be made'; return 1; }
    install -d -m 755 "$DDUCT_PROGRAM" "$DDUCT_UNITS" "${DDUCT_ROOT}/etc/modules-load.d"
    python3 -m zipfile -e "${source}/dduct.pyz" "$DDUCT_PROGRAM" || { fail '' "${source}/dduct.pyz cannot be unpacked"; return 1; }
    python3 -m compileall -q "$DDUCT_PROGRAM"
    chmod -R u=rwX,go=rX "$DDUCT_PROGRAM"
    install -m 644 "${source}/dduct.service" "${DDUCT_UNITS}/dduct.service"
    install -d -m 750 "$DDUCT_ETC" "$DDUCT_STATE"
    chown root:dduct "$DDUCT_ETC"
    chown dduct:dduct "$DDUCT_STATE"
    # The kernel encrypts what it sends from disk, but does not load this for other users than root.
    echo tls > "${DDUCT_ROOT}/etc/modules-load.d/dduct.conf"
    chmod 644 "${DDUCT_ROOT}/etc/modules-load.d/dduct.conf"
    create_one_service_metadata
    msg info "dduct ${ONE_SERVICE_VERSION} is installed"
}

service_configure()
{
    local stage status=0
    settle || return 1
    # Keys and passwords are made in it: only root can read them until they are given to dduct.
    umask 077
    stage="$(mktemp -d "${DDUCT_ETC}/.new.XXXXXX")" || { fail '' "${DDUCT_ETC} cannot be written"; return 1; }
    configure_from "$stage" || status=1
    rm -rf "$stage"
    return "$status"
}

service_bootstrap()
{
    local reason
    settle || return 1
    systemctl daemon-reload
    if ! systemctl restart dduct.service; then
        reason="$(journalctl -u dduct.service -n 20 -o cat 2> /dev/null | grep '^dduct: ' | tail -n 1)"
        systemctl stop dduct.service
        fail '' "dduct does not start: $(shown "${reason#dduct: }"); see journalctl -u dduct"
        return 1
    fi
    check_health || return 1
    write_report || return 1
    announce
    msg info "dduct serves at ${PLAIN_URL:-$TLS_URL}"
}

service_help()
{
    local index
    printf 'dduct %s: %s\n\n' "$ONE_SERVICE_VERSION" "$ONE_SERVICE_SHORT_DESCRIPTION"
    for ((index = 0; index < ${#ONE_SERVICE_PARAMS[@]}; index += 4)); do
        printf '  %-36s %s\n' "${ONE_SERVICE_PARAMS[index]}" "${ONE_SERVICE_PARAMS[index + 2]}"
    done
}

# The framework calls it whenever a stage ends, also in good order.
service_cleanup()
{
    :
}

install_packages()
{
    local package missing=()
    for package in "${DDUCT_PACKAGES[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null; }; then
        fail '' "these packages cannot be installed: ${missing[*]}"
        return 1
    fi
    apt-get clean
    rm -rf /var/lib/apt/lists/*
}

### What went wrong ###############################################################################

# fail VARIABLE TEXT: write the error into the log and into the VM's attributes.
fail()
{
    local text="${1:+$1: }$2"
    msg error "$text" || true
    publish ERROR "dduct: ${text}"
    publish READY NO
}

# A value in quotes, without what a terminal or a template would take for its own.
shown()
{
    local text
    text="$(LC_ALL=C tr -c '[:print:]' '?' <<< "$1")"
    text="${text%?}"
    ((${#text} <= 60)) || text="${text:0:57}..."
    printf '"%s"' "$text"
}

# publish NAME TEXT: an attribute of the VM. OneGate takes a template, in which some characters mean something.
publish()
{
    local text
    [[ -n "${ONEGATE_ENDPOINT:-}" && -z "${ONEGATE_IS_AWAY:-}" ]] && command -v onegate > /dev/null || return 0
    text="$(tr '"\\,=<>[]\n' "'/;:()() " <<< "$2")"
    timeout 60 onegate vm update --data "$1=\"${text% }\"" > /dev/null 2>&1 \
        || { ONEGATE_IS_AWAY=yes; msg warning "OneGate did not take $1, and is not asked again"; }
}

### The inputs ####################################################################################

# Everything that the inputs mean, into the global variables in capitals below; writes nothing.
settle()
{
    load_network
    settle_listeners && settle_hosts && settle_filters && settle_access && settle_upstream && settle_authority \
        && settle_rest && settle_disk && settle_sizes
}

# given NAME: the input ONEAPP_DDUCT_NAME, without blanks around it.
given()
{
    local name="ONEAPP_DDUCT_$1" value
    value="${!name:-}"
    value="${value#"${value%%[![:space:]]*}"}"
    printf '%s' "${value%"${value##*[![:space:]]}"}"
}

# refuse NAME PROBLEM REMEDY: an input is bad.
refuse()
{
    fail "ONEAPP_DDUCT_$1" "$2; $3"
    return 1
}

is_printable()
{
    local LC_ALL=C
    [[ "$1" != *[![:print:]]* ]]
}

# words NAME PATTERN REMEDY: the input as a list in WORDS, each item of which is like PATTERN.
words()
{
    local text word
    text="$(given "$1")"
    WORDS=()
    IFS=$' \t\n' read -r -d '' -a WORDS <<< "${text//,/ }" || true
    for word in "${WORDS[@]}"; do
        [[ "$word" =~ ^($2)$ ]] || { refuse "$1" "$(shown "$word") will not do" "$3"; return 1; }
    done
}

# yes_or_no NAME DEFAULT: the input as true or false in ANSWER.
yes_or_no()
{
    local text
    text="$(given "$1")"
    text="${text:-$2}"
    case "${text,,}" in
        no | n | false | off | 0) ANSWER=false ;;
        yes | y | true | on | 1) ANSWER=true ;;
        *) refuse "$1" "$(shown "$text") is neither YES nor NO" 'give YES or NO' ;;
    esac
}

# time_of NAME DEFAULT: the input as dduct wants a time, in ANSWER; dduct judges its length.
time_of()
{
    ANSWER="$(given "$1")"
    ANSWER="${ANSWER:-$2}"
    [[ "$ANSWER" =~ ^([0-9]+(\.[0-9]+)?[smhd]|0)$ ]] \
        || refuse "$1" "$(shown "$ANSWER") is no time" 'give a number and s, m, h or d, such as 90s or 12h'
}

HOST_PATTERN='(\*\.)?[A-Za-z0-9_](([A-Za-z0-9_.-]|\.\*\.)*[A-Za-z0-9_.])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*'
ADDRESS_PATTERN='[0-9]+(\.[0-9]+){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*'

# NIC_ADDRESSES, those of the first NIC with their prefix lengths, the VM's own first; ALL_ADDRESSES of this machine without
# prefix lengths. A router announces IPv6 at any time, so this waits for it if dduct listens on IPv6.
load_network()
{
    local nic attempt attempts="${DDUCT_NETWORK_ATTEMPTS:-30}"
    nic="$(first_nic)"
    NIC_ADDRESSES=()
    for ((attempt = 0; attempt < attempts; attempt++)); do
        [[ -n "$nic" ]] || break
        # IPv4 before IPv6, else as the kernel has them: a second address, such as a virtual router's, comes later.
        mapfile -t NIC_ADDRESSES < <(ip -o addr show dev "$nic" scope global | awk '{print $3, $4}' | sort -s -k 1,1 | awk '{print $2}')
        if ((${#NIC_ADDRESSES[@]})) && { ! wants_ipv6 || [[ "${NIC_ADDRESSES[*]}" == *:* ]]; }; then break; fi
        ((${#NIC_ADDRESSES[@]} == 0 || attempt < attempts / 3)) || break
        sleep 2
    done
    mapfile -t ALL_ADDRESSES < <(ip -o addr show | awk '{sub("/.*", "", $4); print $4}')
    prefer_own_address
    OWN_ADDRESS="${NIC_ADDRESSES[0]:-127.0.0.1}"
    OWN_ADDRESS="${OWN_ADDRESS%%/*}"
}

# Whether clients come by IPv6, and the first NIC is to have an address for them.
wants_ipv6()
{
    [[ "$(given LISTEN_ADDRESS)" == :: && "${ETH0_IP6_METHOD:-}" =~ ^(static|auto|dhcp)$ ]]
}

# What OpenNebula has given the first NIC comes first.
prefer_own_address()
{
    local address rest=() own=()
    for address in "${NIC_ADDRESSES[@]}"; do
        if [[ "${address%%/*}" == "${ETH0_IP:-}" ]]; then own+=("$address"); else rest+=("$address"); fi
    done
    NIC_ADDRESSES=("${own[@]}" "${rest[@]}")
}

first_nic()
{
    local mac="${ETH0_MAC:-}"
    ip -o link show | awk -v mac="${mac,,}" '
        mac != "" && index(tolower($0), "link/ether " mac) { sub("[:@].*", "", $2); print $2; found = 1; exit }
        END { exit !found }' \
        || ip -o route show default | awk '{ for (i = 1; i < NF; i++) if ($i == "dev") { print $(i + 1); exit } }'
}

settle_listeners()
{
    local address host
    PORT="$(port_of LISTEN_PORT 8000)" || { refuse_port LISTEN_PORT; return 1; }
    TLS_PORT="$(port_of LISTEN_TLS_PORT 4430)" || { refuse_port LISTEN_TLS_PORT; return 1; }
    if ((PORT == 0 && TLS_PORT == 0)); then
        refuse LISTEN_PORT 'it is 0, and so is ONEAPP_DDUCT_LISTEN_TLS_PORT' 'give one of them a port'
        return 1
    fi
    if ((PORT == TLS_PORT)); then
        refuse LISTEN_TLS_PORT "${TLS_PORT} is the port of ONEAPP_DDUCT_LISTEN_PORT" 'give another one'
        return 1
    fi
    address="$(given LISTEN_ADDRESS)"
    address="${address:-0.0.0.0}"
    if [[ ! "$address" =~ ^($ADDRESS_PATTERN)$ ]]; then
        refuse LISTEN_ADDRESS "$(shown "$address") is no address" 'give 0.0.0.0, ::, or an address of this VM'
        return 1
    fi
    host="$address"
    if [[ "$address" == 0.0.0.0 || "$address" == :: ]]; then
        host="$OWN_ADDRESS"
    elif [[ " ${ALL_ADDRESSES[*]} " != *" ${address,,} "* ]]; then
        refuse LISTEN_ADDRESS "$(shown "$address") is no address of this VM" "give 0.0.0.0, ::, or one of: ${ALL_ADDRESSES[*]}"
        return 1
    fi
    ADDRESS="$(bracketed "$address")"
    PLAIN_URL="" TLS_URL=""
    ((PORT == 0)) || PLAIN_URL="http://$(bracketed "$host"):${PORT}"
    ((TLS_PORT == 0)) || TLS_URL="https://$(bracketed "$host"):${TLS_PORT}"
}

port_of()
{
    local text
    text="$(given "$1")"
    text="${text:-$2}"
    [[ "$text" =~ ^(0|[1-9][0-9]{0,4})$ ]] && ((text <= 65535 && text != 22)) && printf '%s' "$text"
}

refuse_port()
{
    refuse "$1" "$(shown "$(given "$1")") is no port for it" 'give a number from 1 to 65535 but 22, or 0 for none'
}

bracketed()
{
    [[ "$1" == *:* ]] && printf '[%s]' "$1" || printf '%s' "$1"
}

# HOSTS to intercept, and IPS; the machine's own address is there for the sake of dduct's own certificate.
settle_hosts()
{
    local word
    words KEEP_HOSTS "$HOST_PATTERN" 'give names such as ghcr.io or *.docker.io, without scheme, port and path' || return 1
    HOSTS=() IPS=("$OWN_ADDRESS")
    GIVEN_HOSTS=("${WORDS[@]}")
    for word in "${GIVEN_HOSTS[@]}"; do
        if [[ "$word" =~ ^($ADDRESS_PATTERN)$ ]]; then IPS+=("$word"); else HOSTS+=("$word"); fi
    done
}

# FILTERS, empty where dduct's own will do. They may hold commas, but no blanks: a path has none.
settle_filters()
{
    local name text more
    FILTERS=()
    for name in KEEP_FILTERS KEEP_EXTRA_FILTERS; do
        text="$(given "$name")"
        if ! is_printable "${text//[$' \t\n']/}"; then
            refuse "$name" 'it holds something else than printable ASCII' 'write \xNN or %NN for it'
            return 1
        fi
        IFS=$' \t\n' read -r -d '' -a more <<< "$text" || true
        if [[ "$name" == KEEP_EXTRA_FILTERS ]] && ((${#more[@]} && ! ${#FILTERS[@]})); then
            mapfile -t FILTERS < <(default_filters)
            ((${#FILTERS[@]})) || { fail '' "${DDUCT_PROGRAM} does not run"; return 1; }
        fi
        FILTERS+=("${more[@]}")
    done
}

default_filters()
{
    python3 - "$DDUCT_PROGRAM" << 'PYTHON'
import pathlib
import sys

sys.path.insert(0, sys.argv[1])
from server import config

print("\n".join(pattern.pattern for pattern in config.defaults(pathlib.Path("/")).proxy.filters))
PYTHON
}

settle_access()
{
    words ACCESS_CLIENTS '[0-9A-Fa-f:./]+' 'give networks such as 10.0.0.0/8 or 192.168.7.12' || return 1
    CLIENTS=("${WORDS[@]}")
    if ((${#CLIENTS[@]} == 0)); then
        ((${#NIC_ADDRESSES[@]})) || { refuse ACCESS_CLIENTS 'it is empty, and the VM has no network yet' 'give networks such as 10.0.0.0/8, or add a NIC'; return 1; }
        mapfile -t CLIENTS < <(networks_of "${NIC_ADDRESSES[@]}")
    fi
    PROXY_USER="$(given ACCESS_USER)"
    PROXY_PASSWORD="${ONEAPP_DDUCT_ACCESS_PASSWORD:-}"
    if [[ "$PROXY_USER" == *[:#[:space:]]* || ${#PROXY_USER} -gt 64 ]] || ! is_printable "$PROXY_USER"; then
        refuse ACCESS_USER "$(shown "$PROXY_USER") is no name for a user" 'give up to 64 characters of ASCII without colon, blank and #'
        return 1
    fi
    if [[ -z "$PROXY_USER" && -n "$PROXY_PASSWORD" ]]; then
        refuse ACCESS_USER 'it is empty, but there is a password' 'give both, or empty ONEAPP_DDUCT_ACCESS_PASSWORD'
        return 1
    fi
    if [[ "$PROXY_PASSWORD" == *[[:cntrl:]]* ]] || ! iconv -f UTF-8 -t UTF-8 <<< "$PROXY_PASSWORD" > /dev/null 2>&1; then
        refuse ACCESS_PASSWORD 'it holds control characters, or is not UTF-8' 'give another one'
        return 1
    fi
    yes_or_no ACCESS_CLIENT_CERT NO || return 1
    CLIENT_CERT="$ANSWER"
    if [[ "$CLIENT_CERT" == true ]] && ((TLS_PORT == 0)); then
        refuse ACCESS_CLIENT_CERT 'only the TLS port asks for certificates, and there is none' 'give ONEAPP_DDUCT_LISTEN_TLS_PORT'
        return 1
    fi
}

networks_of()
{
    python3 -c 'import ipaddress, sys
for network in dict.fromkeys(ipaddress.ip_interface(text).network for text in sys.argv[1:]): print(network)' "$@"
}

settle_upstream()
{
    PARENT="$(given UPSTREAM_PROXY)"
    if [[ -n "$PARENT" && ! "$PARENT" =~ ^https?://[^[:space:]/]+/?$ ]] || ! is_printable "$PARENT"; then
        refuse UPSTREAM_PROXY 'it is no URL of a proxy' 'give http://host:port or https://host:port, with user:password@ where it wants that'
        return 1
    fi
    words UPSTREAM_NO_PROXY "$HOST_PATTERN" 'give names such as *.lab, or addresses' || return 1
    NO_PARENT=("${WORDS[@]}")
    UPSTREAM_CA="$(given UPSTREAM_CA)"
    words UPSTREAM_INSECURE "$HOST_PATTERN" 'give names such as *.lab, or addresses' || return 1
    INSECURE=("${WORDS[@]}")
}

settle_authority()
{
    CA_CERT="$(given CA_CERT)" CA_KEY="$(given CA_KEY)"
    if [[ -n "$CA_CERT" && -z "$CA_KEY" ]]; then
        refuse CA_KEY 'it is empty, but there is ONEAPP_DDUCT_CA_CERT' 'give both, or none'
        return 1
    fi
    if [[ -z "$CA_CERT" && -n "$CA_KEY" ]]; then
        refuse CA_CERT 'it is empty, but there is ONEAPP_DDUCT_CA_KEY' 'give both, or none'
        return 1
    fi
    CA_NAME="$(given CA_NAME)"
    CA_NAME="${CA_NAME:-dduct}"
    if ((${#CA_NAME} > 64)) || ! is_printable "$CA_NAME"; then
        refuse CA_NAME "$(shown "$CA_NAME") is no name for it" 'give up to 64 characters of ASCII'
        return 1
    fi
    yes_or_no CA_CONSTRAINED NO || return 1
    CA_CONSTRAINED="$ANSWER"
}

settle_rest()
{
    time_of LISTEN_IDLE_TIMEOUT 60s || return 1
    IDLE_TIMEOUT="$ANSWER"
    time_of UPSTREAM_TIMEOUT 30s || return 1
    UPSTREAM_TIMEOUT="$ANSWER"
    time_of CACHE_FRESH_FOR 1d || return 1
    FRESH_FOR="$ANSWER"
    time_of CACHE_AUTH_GRACE 60s || return 1
    AUTH_GRACE="$ANSWER"
    yes_or_no CACHE_STALE_IF_ERROR YES || return 1
    STALE_IF_ERROR="$ANSWER"
    yes_or_no CACHE_OBEY_NO_STORE YES || return 1
    OBEY_NO_STORE="$ANSWER"
    MAX_CONNECTIONS="$(given LISTEN_MAX_CONNECTIONS)"
    MAX_CONNECTIONS="${MAX_CONNECTIONS:-4096}"
    if [[ ! "$MAX_CONNECTIONS" =~ ^[1-9][0-9]{0,5}$ ]]; then
        refuse LISTEN_MAX_CONNECTIONS "$(shown "$MAX_CONNECTIONS") is no number for it" 'give one from 1 to 999999'
        return 1
    fi
    LOG_LEVEL="$(given LOG_LEVEL)"
    LOG_LEVEL="${LOG_LEVEL:-info}"
    LOG_LEVEL="${LOG_LEVEL,,}"
    case "$LOG_LEVEL" in
        off | error | warn | info | debug | trace) ;;
        *) refuse LOG_LEVEL "$(shown "$LOG_LEVEL") is no level" 'give off, error, warn, info, debug or trace' ;;
    esac
}

### The disk ######################################################################################

# DISK, the device that the cache is to be on, empty for the system disk; DISK_TYPE, what is on it, empty for a blank one.
settle_disk()
{
    local wanted
    DISK="" DISK_TYPE=""
    wanted="$(given CACHE_DISK)"
    case "${wanted:-auto}" in
        none) return 0 ;;
        auto) find_disk || return 1 ;;
        /dev/*)
            [[ "$wanted" =~ ^/dev/[A-Za-z0-9/_.:-]+$ ]] || { refuse CACHE_DISK "$(shown "$wanted") is no device" 'give auto, none or a device such as /dev/vdb'; return 1; }
            DISK="$(readlink -f "$wanted")" ;;
        *) refuse CACHE_DISK "$(shown "$wanted") is no device" 'give auto, none or a device such as /dev/vdb'; return 1 ;;
    esac
    [[ -z "$DISK" ]] || inspect_disk
}

# The one disk that is neither the system's nor swap space, into DISK.
find_disk()
{
    local disks=() name
    while read -r name; do
        [[ "$(type_on "$name")" == swap ]] || disks+=("$name")
    done < <(spare_disks)
    if ((${#disks[@]} > 1)); then
        refuse CACHE_DISK "the VM has several disks that could be meant (${disks[*]})" 'name one of them, or give none'
        return 1
    fi
    DISK="${disks[0]:-}"
}

spare_disks()
{
    local system
    system=" $(system_disks | tr '\n' ' ') "
    lsblk -dnpro NAME,TYPE,RO | while read -r name type ro; do
        [[ "$type" == disk && "$ro" == 0 && ! "$name" =~ ^/dev/(zram|loop|ram|nbd|fd) ]] || continue
        [[ "$system" == *" $name "* ]] || printf '%s\n' "$name"
    done
}

system_disks()
{
    lsblk -nspro NAME "$(findmnt -nro SOURCE /)"
}

type_on()
{
    blkid -p -o value -s TYPE "$1" 2> /dev/null
}

is_device()
{
    [[ -b "$1" ]]
}

bytes_of()
{
    blockdev --getsize64 "$1"
}

# Check that DISK exists, is not in use, and is blank or has a file system that can be used.
inspect_disk()
{
    local status=0 mounted
    is_device "$DISK" || { refuse CACHE_DISK "there is no disk ${DISK}" 'add it to the VM, or give auto or none'; return 1; }
    if [[ " $(system_disks | tr '\n' ' ') " == *" $DISK "* ]]; then
        refuse CACHE_DISK "the system is on ${DISK}" 'name another disk, or give none'
        return 1
    fi
    mounted="$(findmnt -nro TARGET -S "$DISK" | head -n 1)"
    if [[ -n "$mounted" && "$mounted" != "$DDUCT_STATE" ]]; then
        refuse CACHE_DISK "${DISK} is in use at ${mounted}" 'name another disk, or give none'
        return 1
    fi
    # blkid says 2 for a disk with nothing on it, and for one that it cannot read.
    head -c 4096 "$DISK" > /dev/null 2>&1 || { refuse CACHE_DISK "${DISK} cannot be read" 'replace it, or give none'; return 1; }
    blkid -p "$DISK" > /dev/null 2>&1 || status=$?
    ((status == 2)) && return 0
    DISK_TYPE="$(type_on "$DISK")"
    case "$DISK_TYPE" in
        ext4 | xfs) ;;
        *) refuse CACHE_DISK "${DISK} holds ${DISK_TYPE:-partitions or something unknown}, which is left alone" \
            'give a blank disk, one with ext4 or xfs, or none' ;;
    esac
}

# CAPACITY of where the cache is to be, SIZE and MIN_FREE; all in bytes.
settle_sizes()
{
    local text
    if [[ -n "$DISK" ]]; then
        CAPACITY="$(bytes_of "$DISK")"
    else
        CAPACITY="$(df -B1 --output=size "${DDUCT_STATE%/*}" | tail -n 1)"
    fi
    text="$(given CACHE_SIZE)"
    [[ -n "$text" ]] || { [[ -n "$DISK" ]] && text=90% || text=70%; }
    SIZE="$(size_of "$text")" || { refuse CACHE_SIZE "$(shown "$text") is no size" 'give one such as 500M, 200G, 1.5T or 80%'; return 1; }
    if ((SIZE > CAPACITY)); then
        refuse CACHE_SIZE "$(shown "$text") does not fit into the $(readable "$CAPACITY") of ${DISK:-the system disk}" 'give less, or a larger disk'
        return 1
    fi
    if ((SIZE < 16 * 1024 * 1024)); then
        refuse CACHE_SIZE "$(shown "$text") is less than 16M" 'give more'
        return 1
    fi
    text="$(given CACHE_MIN_FREE)"
    if [[ -n "$text" ]]; then
        MIN_FREE="$(size_of "$text")" || { refuse CACHE_MIN_FREE "$(shown "$text") is no size" 'give one such as 500M, 2G, 5% or 0%'; return 1; }
    else
        MIN_FREE=$((CAPACITY / 20 < 1 << 30 ? CAPACITY / 20 : 1 << 30))
    fi
    ((MIN_FREE < CAPACITY)) || refuse CACHE_MIN_FREE "$(shown "$text") leaves no room for the cache" 'give less'
}

# A size without its unit would be bytes, which no user means.
size_of()
{
    local number factor=1
    [[ "${1^^}" =~ ^([0-9]{1,12}(\.[0-9]{1,6})?)\ *([KMGT])?(I?B)?(%)?$ ]] || return 1
    number="${BASH_REMATCH[1]}"
    case "${BASH_REMATCH[3]}${BASH_REMATCH[5]}" in
        K) factor=$((1 << 10)) ;;
        M) factor=$((1 << 20)) ;;
        G) factor=$((1 << 30)) ;;
        T) factor=$((1 << 40)) ;;
        %) [[ -z "${BASH_REMATCH[4]}" && "$number" =~ ^[0-9]{1,3}$ ]] && ((10#$number <= 100)) || return 1
            printf '%d' "$((CAPACITY * 10#$number / 100))"
            return ;;
        *) return 1 ;;
    esac
    awk -v number="$number" -v factor="$factor" 'BEGIN { size = number * factor; if (size > 2^60) exit 1; printf "%.0f", size }'
}

readable()
{
    numfmt --to=iec --format=%.1f "$1"
}

# Bring DDUCT_STATE to where the inputs want it.
use_disk()
{
    local mounted kept=""
    mounted="$(findmnt -nro SOURCE --mountpoint "$DDUCT_STATE")"
    [[ "$mounted" == "$DISK" ]] || leave_disk "$mounted" || return 1
    if [[ -n "$DISK" && "$mounted" != "$DISK" ]]; then
        format_disk || return 1
        if [[ -e "${DDUCT_CERTS}/ca.key" ]]; then
            kept="$(mktemp -d)" && cp -a "$DDUCT_CERTS" "$kept/" || return 1
        fi
        if ! mount -t "$DISK_TYPE" -o nosuid,nodev,noexec "$DISK" "$DDUCT_STATE"; then
            rm -rf "$kept"
            refuse CACHE_DISK "${DISK} (${DISK_TYPE}) cannot be mounted" 'check its file system, or give a blank disk'
            return 1
        fi
        # Clients that trust the authority of this machine go on to do so.
        [[ -z "$kept" || -e "${DDUCT_CERTS}/ca.key" ]] || cp -a "$kept/certs" "$DDUCT_STATE/"
        rm -rf "$kept"
    fi
    # A file system that is as large as its disk already says so, and that is all right.
    [[ "$DISK_TYPE" != ext4 ]] || resize2fs "$DISK" > /dev/null 2>&1 || msg warning "the file system on ${DISK} did not grow"
    own_state
}

leave_disk()
{
    [[ -n "$1" ]] || return 0
    systemctl stop dduct.service
    umount "$DDUCT_STATE" || { refuse CACHE_DISK "the cache cannot be moved away from $1" 'restart the VM'; return 1; }
}

format_disk()
{
    [[ -z "$DISK_TYPE" ]] || return 0
    msg info "${DISK} is blank and gets an ext4 file system"
    systemctl stop dduct.service
    mkfs.ext4 -q -m 0 -L dduct "$DISK" || { refuse CACHE_DISK "no file system can be made on ${DISK}" 'replace it, or give none'; return 1; }
    DISK_TYPE=ext4
}

# dduct needs two directories, and the way to them; what else is on a disk stays as it is, with its owners. A disk from
# another VM may have another number for the user dduct. To look at every object takes its time, and chown -R leaves a
# directory itself to the last.
own_state()
{
    local id place
    id="$(id -u dduct)"
    for place in "$DDUCT_CERTS" "${DDUCT_STATE}/files"; do
        if [[ -L "$place" ]] || ! install -d -m 700 "$place"; then
            refuse CACHE_DISK "${place##*/} on ${DISK:-the system disk} is no directory" 'remove it there, or give another disk'
            return 1
        fi
        [[ "$(stat -c %u "$place")" == "$id" ]] || chown -R dduct:dduct "$place" \
            || { fail '' "${place} cannot be given to dduct"; return 1; }
    done
    [[ "$(stat -c %u "$DDUCT_STATE")" == "$id" ]] || chmod o+x "$DDUCT_STATE"
}

### The configuration #############################################################################

# configure_from DIRECTORY: make everything new in DIRECTORY, have it judged, and only then touch what there is.
configure_from()
{
    local stage="$1"
    stage_authority "$stage" && stage_upstream_ca "$stage" && stage_users "$stage" || return 1
    configuration > "${stage}/dduct.toml"
    judge "$stage" && judge_authority "$stage" || return 1
    use_disk || return 1
    install_authority "$stage" || return 1
    install_configuration "$stage" || return 1
    install_ports
    msg info "dduct is configured for ${CLIENTS[*]}"
}

# A TOML basic string; control characters do not come this far.
quoted()
{
    local text="${1//\\/\\\\}"
    printf '"%s"' "${text//\"/\\\"}"
}

array()
{
    local item
    printf '['
    for item in "$@"; do
        printf '\n  %s,' "$(quoted "$item")"
    done
    printf '\n]'
}

configuration()
{
    printf '# Written at every boot from the ONEAPP_DDUCT_* inputs of the VM: change those, what is changed here is lost.\n'
    printf '\n[misc]\nlog_level = %s\n' "$(quoted "$LOG_LEVEL")"
    printf 'cert_dir = %s\nfile_dir = %s\n' "$(quoted "$DDUCT_CERTS")" "$(quoted "${DDUCT_STATE}/files")"
    printf '\n[proxy]\n'
    printf 'tcp_bind = %s\n' "$(quoted "${PLAIN_URL:+${ADDRESS}:${PORT}}")"
    printf 'tls_bind = %s\n' "$(quoted "${TLS_URL:+${ADDRESS}:${TLS_PORT}}")"
    ((${#FILTERS[@]} == 0)) || printf 'filters = %s\n' "$(array "${FILTERS[@]}")"
    printf 'allow_clients = %s\n' "$(array 127.0.0.0/8 ::1 "${CLIENTS[@]}")"
    [[ -z "$PROXY_USER" ]] || printf 'auth_file = "users"\n'
    printf 'require_client_cert = %s\n' "$CLIENT_CERT"
    [[ -z "$UPSTREAM_CA" ]] || printf 'upstream_ca = "upstream-ca.pem"\n'
    printf 'upstream_proxy = %s\n' "$(quoted "$PARENT")"
    printf 'no_upstream_proxy = %s\n' "$(array "${NO_PARENT[@]}")"
    printf 'upstream_insecure = %s\n' "$(array "${INSECURE[@]}")"
    printf 'idle_timeout = %s\nupstream_timeout = %s\n' "$(quoted "$IDLE_TIMEOUT")" "$(quoted "$UPSTREAM_TIMEOUT")"
    printf 'max_connections = %s\n' "$MAX_CONNECTIONS"
    printf '\n[cache]\nmax_size = %s\nmin_free = %s\nfresh_for = %s\n' "$SIZE" "$MIN_FREE" "$(quoted "$FRESH_FOR")"
    printf 'stale_if_error = %s\nobey_no_store = %s\n' "$STALE_IF_ERROR" "$OBEY_NO_STORE"
    printf 'auth_grace = %s\n' "$(quoted "$AUTH_GRACE")"
    printf '\n[certs]\nca_cn = %s\nname_constraints = %s\n' "$(quoted "$CA_NAME")" "$CA_CONSTRAINED"
    ((${#GIVEN_HOSTS[@]} == 0)) || printf 'server_dns_sans = %s\n' "$(array "${HOSTS[@]}")"
    printf 'server_ip_sans = %s\n' "$(array "${IPS[@]}")"
}

# judge DIRECTORY: what dduct itself says of the configuration there.
judge()
{
    local answer key status=0
    # 2: the configuration cannot be used. 1 is about what lies on the disk, which is only now being put in order.
    answer="$(python3 "${DDUCT_PROGRAM}/dduct.py" --cfg "$1/dduct.toml" --check 2>&1 > /dev/null)" || status=$?
    ((status > 1)) || return 0
    answer="${answer##*$'\n'}"
    answer="${answer#"dduct: $1/dduct.toml: "}"
    key="${answer%% = *}"
    answer="${answer#*: expected }"
    ((${#answer} <= 200)) || answer="${answer:0:197}..."
    refuse "$(input_of "$key")" "dduct expects ${answer}" 'correct it'
}

# The input that a key of dduct's configuration comes from.
input_of()
{
    case "$1" in
        proxy.tcp_bind | proxy.tls_bind) printf LISTEN_ADDRESS ;;
        proxy.filters) [[ -n "$(given KEEP_FILTERS)" ]] && printf KEEP_FILTERS || printf KEEP_EXTRA_FILTERS ;;
        proxy.allow_clients) printf ACCESS_CLIENTS ;;
        proxy.auth_file) printf ACCESS_USER ;;
        proxy.upstream_proxy) printf UPSTREAM_PROXY ;;
        proxy.no_upstream_proxy) printf UPSTREAM_NO_PROXY ;;
        proxy.upstream_ca) printf UPSTREAM_CA ;;
        proxy.upstream_insecure) printf UPSTREAM_INSECURE ;;
        proxy.upstream_timeout) printf UPSTREAM_TIMEOUT ;;
        proxy.idle_timeout) printf LISTEN_IDLE_TIMEOUT ;;
        proxy.max_connections) printf LISTEN_MAX_CONNECTIONS ;;
        cache.max_size) printf CACHE_SIZE ;;
        cache.min_free) printf CACHE_MIN_FREE ;;
        cache.fresh_for) printf CACHE_FRESH_FOR ;;
        cache.auth_grace) printf CACHE_AUTH_GRACE ;;
        certs.ca_cn) printf CA_NAME ;;
        certs.server_dns_sans | certs.server_ip_sans) printf KEEP_HOSTS ;;
        misc.log_level) printf LOG_LEVEL ;;
        *) printf '*' ;;
    esac
}

# decoded NAME FILE: an input in base64.
decoded()
{
    if ! given "$1" | tr -d '[:space:]' | base64 -d > "$2" 2> /dev/null; then
        refuse "$1" 'it is not base64' 'give what "base64 -w0 FILE" prints'
        return 1
    fi
}

stage_authority()
{
    local key="$1/ca.key" certificate="$1/ca.crt"
    [[ -n "$CA_CERT" ]] || return 0
    decoded CA_CERT "$certificate" && decoded CA_KEY "$key" || return 1
    chmod 600 "$key"
    openssl x509 -in "$certificate" -noout 2> /dev/null \
        || { refuse CA_CERT 'it holds no PEM certificate' 'give what "base64 -w0 ca.crt" prints'; return 1; }
    openssl pkey -in "$key" -passin pass: -noout > /dev/null 2>&1 \
        || { refuse CA_KEY 'it holds no PEM key without a password' 'give what "openssl pkey -in ca.key | base64 -w0" prints'; return 1; }
    if [[ "$(openssl x509 -in "$certificate" -noout -pubkey)" != "$(openssl pkey -in "$key" -passin pass: -pubout)" ]]; then
        refuse CA_KEY 'it is not the key of ONEAPP_DDUCT_CA_CERT' 'give the two that belong together'
        return 1
    fi
    openssl x509 -in "$certificate" -noout -ext basicConstraints 2> /dev/null | grep -q CA:TRUE \
        || { refuse CA_CERT 'it is no certificate authority (basicConstraints CA:TRUE)' 'give that of an authority'; return 1; }
    openssl x509 -in "$certificate" -noout -checkend 0 > /dev/null \
        || { refuse CA_CERT 'it has expired' 'give one that is valid'; return 1; }
    openssl x509 -in "$certificate" -noout -purpose 2> /dev/null | grep -q '^SSL server CA : Yes' \
        || { refuse CA_CERT 'it may not issue the certificates of servers (keyUsage keyCertSign)' 'give that of an authority'; return 1; }
}

# judge_authority DIRECTORY: what dduct itself says of the authority there. It has to be known before the old one goes,
# which clients trust.
judge_authority()
{
    local problem name=CA_CERT remedy='give one that is valid now'
    [[ -n "$CA_CERT" ]] || return 0
    problem="$(try_authority "$1" 2>&1)" && return 0
    problem="${problem##*$'\n'}"
    if [[ "$problem" != \"* ]]; then # none of its own words
        problem="dduct cannot use it ($(shown "$problem"))"
    else
        [[ "$problem" != *'/ca.key" '* ]] || { name=CA_KEY remedy='give an authority with an RSA or EC key'; }
        problem="it ${problem#*\" }"
    fi
    refuse "$name" "${problem%%;*}" "$remedy"
}

# What dduct does at its first start; its own keys may be small, for they go with DIRECTORY.
try_authority()
{
    mkdir "$1/tried" && cp "$1"/ca.{key,crt} "$1/tried/" && python3 - "$DDUCT_PROGRAM" "$1" << 'PYTHON'
import dataclasses
import pathlib
import sys

sys.path.insert(0, sys.argv[1])
import certs
from server import config

stage = pathlib.Path(sys.argv[2])
settings = config.load(stage / "dduct.toml", stage).certs
try:
    certs.prepare(stage / "tried", dataclasses.replace(settings, rsa_key_bits=1024))
except certs.CertificateError as error:
    sys.exit(str(error))
PYTHON
}

stage_upstream_ca()
{
    [[ -n "$UPSTREAM_CA" ]] || return 0
    decoded UPSTREAM_CA "$1/upstream-ca.pem" || return 1
    python3 -c 'import ssl, sys
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(sys.argv[1])' "$1/upstream-ca.pem" 2> /dev/null \
        || { refuse UPSTREAM_CA 'it holds no PEM certificates' 'give what "base64 -w0 FILE" prints of a PEM file'; return 1; }
}

# A password that nobody gave is made once, and stays.
stage_users()
{
    local generated="${DDUCT_ETC}/generated-password"
    [[ -n "$PROXY_USER" ]] || return 0
    if [[ -z "$PROXY_PASSWORD" ]]; then
        if [[ -s "$generated" ]]; then cp "$generated" "$1/generated-password"; else gen_password 20 > "$1/generated-password"; fi
        PROXY_PASSWORD="$(< "$1/generated-password")"
    fi
    python3 "${DDUCT_PROGRAM}/dduct.py" passwd "$PROXY_USER" <<< "$PROXY_PASSWORD" > "$1/users" 2> /dev/null \
        || { refuse ACCESS_USER "$(shown "$PROXY_USER") and its password cannot be used" 'give others'; return 1; }
}

# Put an authority of the user's own in place, and let go of certificates that are not right any more.
install_authority()
{
    local certificate="${DDUCT_CERTS}/ca.crt" issued=("${DDUCT_CERTS}"/{server,client}.{key,crt,p12})
    if [[ -n "$CA_CERT" ]] && ! { cmp -s "$1/ca.crt" "$certificate" && cmp -s "$1/ca.key" "${DDUCT_CERTS}/ca.key"; }; then
        rm -f "${issued[@]}" "${DDUCT_CERTS}"/.*.pending
        if ! { install -m 600 "$1/ca.key" "${DDUCT_CERTS}/ca.key" && install -m 644 "$1/ca.crt" "$certificate" \
            && chown dduct:dduct "${DDUCT_CERTS}"/ca.{key,crt}; }; then
            fail '' "${DDUCT_CERTS} cannot be written"
            return 1
        fi
    fi
    # It has to name the address under which clients reach the TLS port.
    if [[ -e "${DDUCT_CERTS}/server.crt" ]] \
        && openssl x509 -in "${DDUCT_CERTS}/server.crt" -noout -checkip "$OWN_ADDRESS" | grep -q 'does NOT match'; then
        rm -f "${DDUCT_CERTS}"/server.{key,crt,p12}
    fi
}

install_configuration()
{
    local name
    for name in users upstream-ca.pem dduct.toml; do # the last one names the others
        [[ -e "$1/${name}" ]] || continue
        if ! { chown root:dduct "$1/${name}" && chmod 640 "$1/${name}" && mv "$1/${name}" "${DDUCT_ETC}/${name}"; }; then
            fail '' "${DDUCT_ETC} cannot be written"
            return 1
        fi
    done
    [[ -n "$PROXY_USER" ]] || rm -f "${DDUCT_ETC}/users"
    [[ -n "$UPSTREAM_CA" ]] || rm -f "${DDUCT_ETC}/upstream-ca.pem"
    if [[ -e "$1/generated-password" ]]; then
        mv "$1/generated-password" "${DDUCT_ETC}/generated-password"
    else
        rm -f "${DDUCT_ETC}/generated-password"
    fi
}

# Only root may listen below 1024, and dduct is not root.
install_ports()
{
    local place="${DDUCT_UNITS}/dduct.service.d"
    if ((PORT > 0 && PORT < 1024 || TLS_PORT > 0 && TLS_PORT < 1024)); then
        install -d -m 755 "$place"
        printf '[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n' > "${place}/ports.conf"
        chmod 644 "${place}/ports.conf"
    else
        rm -f "${place}/ports.conf"
    fi
}

### Whether it serves, and who is told ############################################################

check_health()
{
    local url options=(-fsS -o /dev/null --max-time 60 --retry 3 --retry-connrefused --noproxy '*') host=127.0.0.1
    # The certificate is for the address that clients use, which need not be among the clients itself.
    [[ "$ADDRESS" == 0.0.0.0 || "$ADDRESS" == '[::]' ]] || host="$ADDRESS"
    if ((PORT)); then
        url="http://${host}:${PORT}/healthz"
    elif [[ "$CLIENT_CERT" == false ]]; then
        url="https://$(bracketed "$OWN_ADDRESS"):${TLS_PORT}/healthz"
        options+=(--cacert "${DDUCT_CERTS}/ca.crt" --connect-to "::${host}:" -H 'Host: localhost')
    else
        return 0 # nobody here has a certificate, and the service manager knows that it listens
    fi
    curl "${options[@]}" "$url" || { fail '' "dduct does not answer at ${url}; see journalctl -u dduct"; return 1; }
}

# It may hold a password: only root can read it, from its first byte on, even where an earlier one was left.
write_report()
{
    local new="${DDUCT_REPORT}.new"
    if ! { rm -rf "$new" && (umask 077 && report > "$new") && mv "$new" "$DDUCT_REPORT"; }; then
        rm -f "$new"
        fail '' "${DDUCT_REPORT} cannot be written"
        return 1
    fi
}

report()
{
    local certificate="${DDUCT_CERTS}/ca.crt"
    printf '[dduct]\n'
    [[ -z "$PLAIN_URL" ]] || printf 'proxy = %s\n' "$PLAIN_URL"
    [[ -z "$TLS_URL" ]] || printf 'proxy_tls = %s\n' "$TLS_URL"
    printf 'clients = %s\n' "${CLIENTS[*]}"
    if ((${#GIVEN_HOSTS[@]})); then printf 'hosts = %s\n' "${GIVEN_HOSTS[*]}"; else printf 'hosts = the default\n'; fi
    printf 'cache = %s on %s, %s of %s\n' "${DDUCT_STATE}/files" "${DISK:-the system disk}" \
        "$(readable "$SIZE")" "$(readable "$CAPACITY")"
    if [[ -n "$PROXY_USER" ]]; then
        printf 'user = %s\n' "$PROXY_USER"
        if [[ -e "${DDUCT_ETC}/generated-password" ]]; then
            printf 'password = %s\n' "$(< "${DDUCT_ETC}/generated-password")"
        else
            printf 'password = as given\n'
        fi
    fi
    printf '\n[certificate authority]\n'
    printf 'file = %s\n' "$certificate"
    [[ -z "$PLAIN_URL" ]] || printf 'url = %s/ca.crt\n' "$PLAIN_URL"
    printf 'subject = %s\n' "$(openssl x509 -in "$certificate" -noout -subject -nameopt RFC2253 | sed 's/^subject=//')"
    printf 'sha256 = %s\n' "$(openssl x509 -in "$certificate" -noout -fingerprint -sha256 | sed 's/.*=//')"
}

# The certificate goes as base64 of its PEM, one line.
announce()
{
    local certificate
    certificate="$(unpadded "${DDUCT_CERTS}/ca.crt")"
    publish DDUCT_PROXY_URL "$PLAIN_URL"
    publish DDUCT_PROXY_TLS_URL "$TLS_URL"
    publish DDUCT_CA_CERT "$certificate"
    [[ -z "${ONEGATE_ENDPOINT:-}" || -n "${ONEGATE_IS_AWAY:-}" ]] \
        || timeout 60 onegate vm update --erase ERROR > /dev/null 2>&1 || true # there may be none
}

# base64 without the = at its end, which means something to OneGate: line ends fill the last group up instead.
unpadded()
{
    local fill=$(((3 - $(stat -c %s "$1") % 3) % 3))
    { cat "$1"; head -c "$fill" <<< $'\n\n'; } | base64 -w0
}
