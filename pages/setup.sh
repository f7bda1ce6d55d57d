#!/bin/sh
# Makes this machine use dduct: its certificate authority goes into the system's store, its address into the settings.
#
#     curl -fsS http://PROXY:8000/setup/sh | sudo sh
#     curl -fsS http://PROXY:8000/setup/sh | sudo sh -s -- --undo
#
# With --mirror, only what pulls images uses it, as a mirror of registries, and nothing is told to trust it.
#
# Run again, it changes nothing, or brings up to date what has changed. What it changes is first copied to
# /var/lib/dduct-setup, where --undo finds it; a run that broke off is undone in the same way. Nothing is done before
# the last line is here.
set -eu

# --- dduct fills these in, and changes nothing else ---
proxy=''
fingerprint=''
certificate=''
asks_password=''
registries=''
# --- end of what dduct fills in ---

LC_ALL=C
# Debian's su, and cron, leave out where chroot and the updaters are.
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL PATH
umask 022

root=''                       # what all paths are below
store=/var/lib/dduct-setup    # journal; before/: as it was; after/, next/: as we left it; kept/: what others have changed
begin='# >>> dduct: what is between these lines comes from its setup, and goes with --undo'
end='# <<< dduct'
aside='#dduct# '              # before a line that we have put out of force
no_proxy_hosts='localhost,127.0.0.1,::1,.local,.localdomain,.internal,.lan,.home.arpa'
no_proxy_cluster='127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local'
services='docker containerd crio buildkit k3s k3s-agent rke2-server rke2-agent'

say() { printf '%s\n' "$*"; }

fail() {
    printf 'dduct setup: %s\n' "$*" >&2
    exit 1
}

misuse() {
    printf 'dduct setup: %s; --help says what there is\n' "$*" >&2
    exit 2
}

usage() {
    cat <<'EOF'
Makes this machine use dduct. As root:

    curl -fsS http://PROXY:8000/setup/sh | sh -s -- [OPTIONS]

  --undo         restore every file as it was
  --mirror       for images alone: a mirror of registries for containerd, k3s, RKE2, CRI-O and podman, without its
                 authority and without a proxy
  --proxy URL    use this proxy, http[s]://[USER:PASSWORD@]HOST:PORT, instead of where the script came from
  --root DIR     work on the system below DIR, such as an image's
  --help         this
EOF
}

options() {
    action=set_up
    while [ $# -gt 0 ]; do
        case $1 in
            --undo) action=undo ;;
            --mirror) action=set_mirror ;;
            --help) action=help ;;
            --proxy | --root)
                [ $# -gt 1 ] || misuse "$1 wants a value"
                if [ "$1" = --root ]; then root=$2; else proxy=$2; fi
                shift
                ;;
            *) misuse "there is no option $1" ;;
        esac
        shift
    done
    case $root in
        '' | /) root='' ;;
        /*) root=${root%/} ;;
        *) misuse "--root wants an absolute path, not $root" ;;
    esac
    [ -d "$root/" ] || misuse "--root $root is no directory"
    locate "$store" follow || misuse "$root$store is behind a link that leads nowhere"
    state=$root$found
    journal=$state/journal
    [ -z "$root" ] || no_links "$state"
}

# --- below a root -------------------------------------------------------------------------------

# Links of an image mean what they would mean inside it: followed by us, an absolute one would lead out of it, and so
# would `..`. Nothing below --root is opened, made or renamed but by a path that has been through here.

# locate PATH [follow]: sets `found` to the same path without links among its directories (nor at its end: follow).
locate() {
    found=$1
    [ -n "$root" ] || return 0
    rest=$1 found='' links=0
    while [ -n "$rest" ]; do
        part=${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest='' ;; esac
        case $part in
            '' | .) continue ;;
            ..)
                found=${found%/*}
                continue
                ;;
        esac
        if [ -L "$root$found/$part" ] && [ -n "$rest${2:-}" ]; then
            links=$((links + 1))
            [ "$links" -le 40 ] || return 1
            target=$(readlink "$root$found/$part" && printf x) || return 1
            target=${target%?x}
            case $target in /*) found='' ;; esac
            rest=$target/$rest
            rest=${rest%/}
        else
            found=$found/$part
        fi
    done
}

# Whether that system has something at a path.
there() { locate "$1" follow && [ -e "$root$found" ]; }
is_directory() { locate "$1" follow && [ -d "$root$found" ]; }

# Our state has no links in it: a link there would make us write elsewhere.
no_links() {
    for entry in "$1"/* "$1"/.*; do
        case $entry in */. | */..) continue ;; esac
        [ ! -L "$entry" ] || fail "$entry is a link, which we have never made: look at it, and remove it"
        [ ! -d "$entry" ] || (no_links "$entry") || exit 1
    done
}

# What is in $proxy goes into files of many syntaxes: nothing that means anything in any of them may be in it.
check_proxy() {
    case $proxy in
        '') misuse "there is no proxy: fetch this script from dduct (http://PROXY:8000/setup/sh)" ;;
        *[!]0-9A-Za-z._~%:@/[-]*)
            misuse "--proxy has characters that it cannot have; write those of a password as %XX" ;;
    esac
    proxy=${proxy%/}
    say "$proxy" | grep -Eqx 'https?://([^@/]+@)?([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}' ||
        misuse "--proxy wants http[s]://[USER:PASSWORD@]HOST:PORT"
    # dduct itself is not reached through dduct.
    host=${proxy##*[@/]}
    host=${host%:*}
    host=${host#\[}
    host=${host%\]}
    case ",$no_proxy_hosts," in *",$host,"*) ;; *) no_proxy_hosts=$no_proxy_hosts,$host ;; esac
    no_proxy_cluster=$no_proxy_hosts,$no_proxy_cluster
    [ -n "$certificate" ] || misuse "there is no certificate: fetch this script from dduct (http://PROXY:8000/setup/sh)"
}

# --- which system this is -----------------------------------------------------------------------

has() {
    for directory in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        if locate "$directory/$1" follow && [ -x "$root$found" ]; then return 0; fi
    done
    return 1
}

# Run a program of the system that this is about. It must not read the script that comes on our standard input.
inside() {
    if [ -n "$root" ]; then chroot "$root" "$@" < /dev/null; else "$@" < /dev/null; fi
}

find_family() {
    family=''
    ids=''
    if there /etc/os-release; then
        ids=$(sed -n 's/^ID=//p; s/^ID_LIKE=//p' "$root$found" | tr -d "\"'" | tr '\n' ' ')
    fi
    for id in $ids; do
        case $id in
            debian | ubuntu) family=debian ;;
            alpine) family=alpine ;;
            rhel | fedora | centos | almalinux | rocky | ol | amzn) family=redhat ;;
            suse | opensuse* | sle*) family=suse ;;
            arch) family=arch ;;
        esac
        [ -z "$family" ] || return 0
    done
    # Nobody has heard of it: what lies where?
    if is_directory /etc/pki/ca-trust/source/anchors; then family=redhat
    elif is_directory /etc/ca-certificates/trust-source/anchors; then family=arch
    elif is_directory /etc/pki/trust/anchors; then family=suse
    elif has update-ca-certificates; then family=debian
    fi
}

find_trust() {
    find_family
    afresh=''
    case $family in
        debian | alpine)
            anchor=/usr/local/share/ca-certificates/dduct.crt updater=update-ca-certificates
            afresh=--fresh # else the removed one's links stay
            ;;
        redhat) anchor=/etc/pki/ca-trust/source/anchors/dduct.pem updater=update-ca-trust ;;
        suse) anchor=/etc/pki/trust/anchors/dduct.pem updater=update-ca-certificates ;;
        arch) anchor=/etc/ca-certificates/trust-source/anchors/dduct.crt updater=update-ca-trust ;;
        *) anchor='' updater='' ;;
    esac
}

install_hint() {
    case $family in
        debian) say "apt-get -o Acquire::http::Proxy=$proxy update && apt-get -o Acquire::http::Proxy=$proxy install ca-certificates" ;;
        alpine) say "http_proxy=$proxy apk add ca-certificates" ;;
        redhat) say "dnf --setopt=proxy=$proxy install ca-certificates" ;;
        suse) say "http_proxy=$proxy zypper install ca-certificates" ;;
        arch) say "http_proxy=$proxy pacman -S ca-certificates-utils" ;;
    esac
}

# Where the system has all that it trusts in one file; after the update.
find_bundle() {
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem \
        /etc/ssl/ca-bundle.pem /var/lib/ca-certificates/ca-bundle.pem /etc/pki/tls/certs/ca-bundle.crt; do
        if there "$bundle" && [ -s "$root$found" ]; then return 0; fi
    done
    bundle=''
}

# --- files, and the way back --------------------------------------------------------------------

noted() { [ -f "$journal" ] && grep -qxF "$1" "$journal"; }

# The journal names what is about to be changed: `made DIR`, `new FILE` or `saved FILE`.
note() { noted "$1" || printf '%s\n' "$1" >> "$journal"; }

same() { [ -e "$1" ] && [ -e "$2" ] && [ "$(sha256sum < "$1")" = "$(sha256sum < "$2")" ]; }

# Whether a file is as we left it, or were about to leave it.
is_ours() { same "$file" "$state/after$1" || same "$file" "$state/next$1"; }

copy() {
    mkdir -p "${2%/*}"
    cp -p "$1" "$2.part"
    mv -f "$2.part" "$2"
}

make_directory() {
    if [ -z "$1" ] || [ -d "$root$1" ]; then return 0; fi
    make_directory "${1%/*}"
    note "made $1"
    mkdir "$root$1"
}

# aim FILE: from here on it is `file`; where it is no regular file, or none can be, nothing is to be done about it.
aim() {
    if ! locate "$1"; then
        say "  $root$1 is behind a link that leads nowhere, and left alone"
        return 1
    fi
    file=$root$found parent=${found%/*}
    if [ -L "$file" ]; then
        say "  $root$1 is a link, and left alone"
    elif [ -e "$file" ] && [ ! -f "$file" ]; then
        say "  $root$1 is no regular file, and left alone"
    else
        return 0
    fi
    return 1
}

# What somebody else has changed in a file of ours is theirs, and stays to be found.
keep() {
    number=1
    while [ -e "$state/kept$1.$number" ]; do number=$((number + 1)); done
    copy "$file" "$state/kept$1.$number"
    say "  $1 has been changed since; as it was until now it is kept in $root$store/kept$1.$number"
}

save() {
    if noted "saved $1" || noted "new $1"; then
        if [ -e "$file" ] && [ -e "$state/after$1" ] && ! is_ours "$1" && ! same "$file" "$state/before$1"; then
            renew "$1"
        fi
    elif [ -e "$file" ]; then
        copy "$file" "$state/before$1"
        note "saved $1"
    else
        note "new $1"
    fi
}

# A file was edited between two runs: what --undo brings back has to have that in it.
renew() {
    keep "$1"
    if grep -qxF "$begin" "$file"; then
        copy "$file" "$state/before$1"
        without_block "$1" > "$state/before$1"
        note "saved $1"
    fi
}

# Put what lies in next/ into its place, whole.
put() {
    save "$1"
    if ! same "$file" "$state/next$1"; then
        make_directory "$parent"
        rm -f "$file.dduct-new"
        if [ -e "$file" ]; then cp -p "$file" "$file.dduct-new"; fi
        cat "$state/next$1" > "$file.dduct-new"
        mv -f "$file.dduct-new" "$file"
        relabel "$file"
        say "  $root$1"
        changed=yes
    fi
    mkdir -p "$state/after${1%/*}"
    mv -f "$state/next$1" "$state/after$1"
}

relabel() { if command -v restorecon > /dev/null; then restorecon "$1" || :; fi; }

# own FILE TEXT: a file that is ours alone.
own() {
    aim "$1" || return 0
    mkdir -p "$state/next${1%/*}"
    printf '%s\n' "$2" > "$state/next$1"
    put "$1"
}

# block FILE SECTION KEYS TEXT: lines of ours in a file of somebody else's; lines there that set one of KEYS (an extended
# regular expression) are put out of force. SECTION is `[name]`, or nothing where the file has none.
block() {
    aim "$1" || return 0
    mkdir -p "$state/next${1%/*}"
    if [ -e "$file" ]; then without_block "$1" > "$state/next$1.part"; else : > "$state/next$1.part"; fi
    SECTION=$2 KEYS=$3 TEXT=$4 BEGIN=$begin END=$end ASIDE=$aside awk '
        function ours() { print ENVIRON["BEGIN"]; print ENVIRON["TEXT"]; print ENVIRON["END"]; done = 1 }
        BEGIN { section = ENVIRON["SECTION"]; within = section == ""; keys = "^[ \t]*(export[ \t]+)?(" ENVIRON["KEYS"] ")[ \t]*=" }
        section != "" && /^[ \t]*\[/ {
            name = $0
            gsub(/^[ \t]+|[ \t\r]+$/, "", name)
            within = name == section
            print
            if (within && !done) ours()
            next
        }
        within && $0 ~ keys { print ENVIRON["ASIDE"] $0; next }
        { print }
        END {
            if (done) exit
            if (section == "") ours()
            else { print ENVIRON["BEGIN"]; print section; print ENVIRON["TEXT"]; print ENVIRON["END"] }
        }' "$state/next$1.part" > "$state/next$1"
    rm -f "$state/next$1.part"
    put "$1"
}

# A file as it would be without us. Where the end of our lines is gone, only those go that we have written; what has
# come to stand below them since is not ours.
without_block() {
    OURS=$(written_lines "$1") BEGIN=$begin END=$end ASIDE=$aside awk '
        function give(line) { print index(line, ENVIRON["ASIDE"]) == 1 ? substr(line, length(ENVIRON["ASIDE"]) + 1) : line }
        function let_go(    i) { for (i = 1; i <= held; i++) if (!(line[i] in ours)) give(line[i]); held = 0 }
        BEGIN { count = split(ENVIRON["OURS"], written, "\n"); for (i = 1; i <= count; i++) ours[written[i]] }
        $0 == ENVIRON["BEGIN"] { let_go(); holding = 1; next }
        $0 == ENVIRON["END"] { held = holding = 0; next }
        holding { line[++held] = $0; next }
        { give($0) }
        END { let_go() }' "$file"
}

# The lines that we left, or were about to leave, in a file that is not ours. A section's name may be in use by others.
written_lines() {
    for left in "$state/after$1" "$state/next$1"; do
        [ ! -e "$left" ] || BEGIN=$begin END=$end awk '
            $0 == ENVIRON["BEGIN"] { text = ""; within = 1; next }
            $0 == ENVIRON["END"] { if (within) printf "%s", text; within = 0 }
            within && !/^\[/ { text = text $0 "\n" }' "$left"
    done
}

# --- what others have set -----------------------------------------------------------------------

# Ours are called zz-dduct, for of several files the last one counts. What wins all the same is told of, one line each.
# rival FILE PATTERN: whether a file has lines like an extended regular expression, capitals or not.
rival() {
    if there "$1" && [ -f "$root$found" ] && grep -Eqi "$2" "$root$found"; then
        say "  $root$1 sets a proxy as well, and that one wins: take it out there"
    fi
}

# later FILE PATTERN: what stands in its directory and is read after it.
later() {
    passed=''
    there "${1%/*}" || return 0
    for other in "$root$found"/*; do
        if [ "${other##*/}" = "${1##*/}" ]; then passed=yes
        elif [ -n "$passed" ]; then rival "${1%/*}/${other##*/}" "$2"
        fi
    done
}

# --- what is installed --------------------------------------------------------------------------

variables() {
    for name in http_proxy https_proxy HTTP_PROXY HTTPS_PROXY; do say "$1$name=$2$proxy$2"; done
    for name in no_proxy NO_PROXY; do say "$1$name=$2$no_proxy_hosts$2"; done
    # What brings its own list of authorities: Node.js takes further ones, others (requests, pip, uv) the system's.
    say "$1NODE_EXTRA_CA_CERTS=$2$anchor$2"
    if [ -n "$bundle" ]; then
        for name in REQUESTS_CA_BUNDLE SSL_CERT_FILE; do say "$1$name=$2$bundle$2"; done
    fi
}

set_environment() {
    own /etc/profile.d/zz-dduct.sh "# Written by dduct's setup; --undo removes it.
$(variables 'export ' "'")"
    later /etc/profile.d/zz-dduct.sh '^[^#]*https?_proxy='
    if is_directory /etc/pam.d || there /etc/environment; then
        block /etc/environment '' 'https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|NODE_EXTRA_CA_CERTS|REQUESTS_CA_BUNDLE|SSL_CERT_FILE' \
            "$(variables '' '')"
    fi
}

set_packages() {
    if is_directory /etc/apt/apt.conf.d; then
        own /etc/apt/apt.conf.d/zz-dduct "// Written by dduct's setup; --undo removes it.
Acquire::http::Proxy \"$proxy\";
Acquire::https::Proxy \"$proxy\";
Acquire::http::Proxy::localhost \"DIRECT\";
Acquire::https::Proxy::localhost \"DIRECT\";"
        later /etc/apt/apt.conf.d/zz-dduct '^[^#/]*acquire::https?::proxy'
        rival /etc/apt/apt.conf '^[^#/]*acquire::https?::proxy'
        # A proxy that a program finds comes before one that is written.
        locate /etc/apt/apt.conf.d follow
        for other in "$root$found"/*; do rival "/etc/apt/apt.conf.d/${other##*/}" '^[^#/]*proxy-?auto-?detect'; done
    fi
    if is_directory /etc/dnf || has dnf || has microdnf; then
        block /etc/dnf/dnf.conf '[main]' proxy "proxy=$proxy"
    elif there /etc/yum.conf; then
        block /etc/yum.conf '[main]' proxy "proxy=$proxy"
    fi
    if there /etc/sysconfig/proxy || has zypper; then
        block /etc/sysconfig/proxy '' 'PROXY_ENABLED|HTTPS?_PROXY|NO_PROXY' "PROXY_ENABLED=\"yes\"
HTTP_PROXY=\"$proxy\"
HTTPS_PROXY=\"$proxy\"
NO_PROXY=\"$(say "$no_proxy_hosts" | sed 's/,/, /g')\""
    fi
    # pip takes the proxy from the environment, where no_proxy counts as well.
    [ -z "$bundle" ] || block /etc/pip.conf '[global]' cert "cert = $bundle"
}

set_services() {
    units='' scripts='' # to be started again
    before_services=$changed
    for service in $services; do
        changed=''
        if find_unit "$service"; then
            drop_in "$service"
            if [ -n "$changed$authority_changed" ] && there "/etc/systemd/system/$service.service.d/zz-dduct.conf"; then
                units="$units $service"
            fi
        elif there "/etc/init.d/$service" && grep -q openrc-run "$root$found" 2> /dev/null; then
            open_rc "$service"
            [ -z "$changed$authority_changed" ] || scripts="$scripts $service"
        else
            continue
        fi
        [ "$service" != docker ] || rival "/etc/docker/daemon.json" '"https?-proxy"'
        before_services=$before_services$changed
    done
    changed=$before_services
    [ -z "$units" ] || reload_systemd
}

find_unit() {
    for directory in /etc/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
        locate "$directory/$1.service" || continue
        unit=$root$found
        if [ -L "$unit" ]; then
            if locate "$directory/$1.service" follow; then unit=$root$found; fi
            return 0
        fi
        if [ -e "$unit" ]; then return 0; fi
    done
    return 1
}

drop_in() {
    escaped=$(say "$proxy" | sed 's/%/%%/g') # % is systemd's own
    own "/etc/systemd/system/$1.service.d/zz-dduct.conf" "# Written by dduct's setup; --undo removes it.
[Service]
Environment=\"HTTP_PROXY=$escaped\" \"HTTPS_PROXY=$escaped\" \"NO_PROXY=$no_proxy_cluster\"
Environment=\"http_proxy=$escaped\" \"https_proxy=$escaped\" \"no_proxy=$no_proxy_cluster\""
    later "/etc/systemd/system/$1.service.d/zz-dduct.conf" '^[^#;]*https?_proxy='
    # What a unit reads from a file comes before all that it sets by itself.
    locate "/etc/systemd/system/$1.service.d" follow || return 0
    cat "$unit" "$root$found"/*.conf 2> /dev/null |
        sed -n "s/^EnvironmentFile=-\{0,1\}//p" | sed "s/%n/$1.service/; s/%[Np]/$1/" |
        while read -r path; do rival "$path" '^[[:blank:]]*(containerd_)?https?_proxy='; done
}

# What OpenRC's scripts read is sh. That of k3s reads /etc/environment after it, and a file of its own last.
open_rc() {
    case $1 in
        k3s*) settings=/etc/rancher/k3s/$1.env ;;
        *) settings=/etc/conf.d/$1 ;;
    esac
    block "$settings" '' 'https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY' "export HTTP_PROXY='$proxy' HTTPS_PROXY='$proxy'
export http_proxy='$proxy' https_proxy='$proxy'
export NO_PROXY='$no_proxy_cluster' no_proxy='$no_proxy_cluster'"
    rival "$settings" '^[^#]*containerd_https?_proxy='
}

reload_systemd() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload < /dev/null; fi
}

# --- as a mirror of registries ------------------------------------------------------------------

# Images alone, and no authority: whatever pulls them asks the registry itself where dduct is away or lists it not.
set_mirror() {
    check_proxy
    case $proxy in *@*) misuse "--mirror has no place for a password" ;; esac
    [ -z "$asks_password" ] || fail "dduct asks for a password here, for which clients of a mirror have no place"
    begin
    place=${proxy#*://}
    tls=''
    case $proxy in https:*) tls=yes ;; esac
    say "dduct $proxy as a mirror, for ${root:-this machine}"
    say "Written:"
    mirror_containerd
    mirror_rancher k3s k3s k3s-agent
    mirror_rancher rke2 rke2-server rke2-agent
    mirror_containers
    [ -n "$changed" ] || say "  nothing: everything was as it should be, or nothing is here that pulls images"
    trap - EXIT
    say_mirror_restart
    say "Undo: the same with --undo (.. | sudo sh -s -- --undo)"
}

# is_installed SERVICE..
is_installed() {
    for service in "$@"; do
        if find_unit "$service" || there "/etc/init.d/$service"; then return 0; fi
    done
    return 1
}

# Whether a file that can be one's alone is ours, or there is none.
is_free() {
    if ! there "$1" || noted "new $1"; then return 0; fi
    say "  $root$1 is there already, and left alone; ${proxy%%://*}://$place/setup says what to add"
    return 1
}

mirror_containerd() {
    if ! is_directory /etc/containerd && ! is_installed containerd; then return 0; fi
    folder=/etc/containerd/certs.d/_default
    is_free "$folder/hosts.toml" || return 0
    trusting=''
    if [ -n "$tls" ]; then
        own "$folder/dduct.crt" "$certificate"
        trusting="
  ca = \"$folder/dduct.crt\""
    fi
    own "$folder/hosts.toml" "# Written by dduct's setup; --undo removes it.
[host.\"$proxy\"]
  capabilities = [\"pull\", \"resolve\"]$trusting"
    if ! there /etc/containerd/config.toml || ! grep -Eq '^[^#]*config_path *=.*/etc/containerd/certs\.d' "$root$found"; then
        say "  containerd reads it where config_path in config.toml says so: ${proxy%%://*}://$place/setup"
    fi
}

# mirror_rancher NAME SERVICE..
mirror_rancher() {
    name=$1
    shift
    if ! is_directory "/etc/rancher/$name" && ! is_installed "$@"; then return 0; fi
    is_free "/etc/rancher/$name/registries.yaml" || return 0
    text="# Written by dduct's setup; --undo removes it.
mirrors:"
    for registry in $registries; do
        text="$text
  $registry:
    endpoint: [\"$proxy\"]"
    done
    if [ -n "$tls" ]; then
        own "/etc/rancher/$name/dduct.crt" "$certificate"
        text="$text
configs:
  \"$place\":
    tls:
      ca_file: /etc/rancher/$name/dduct.crt"
    fi
    own "/etc/rancher/$name/registries.yaml" "$text"
}

# What podman, skopeo, buildah and CRI-O read.
mirror_containers() {
    is_directory /etc/containers || is_installed crio || return 0
    text="# Written by dduct's setup; --undo removes it."
    for registry in $registries; do
        text="$text

[[registry]]
prefix = \"$registry\"
location = \"$registry\"
[[registry.mirror]]
location = \"$place/$registry\""
        [ -n "$tls" ] || text="$text
insecure = true"
    done
    [ -z "$tls" ] || own "/etc/containers/certs.d/$place/ca.crt" "$certificate"
    own /etc/containers/registries.conf.d/zz-dduct.conf "$text"
}

# By the journal, which undo has, too.
say_mirror_restart() {
    if grep -Eqx '[a-z]+ /etc/rancher/[a-z0-9]+/registries\.yaml' "$journal" 2> /dev/null; then
        say "k3s and RKE2 follow once they are started again."
    fi
    if grep -qx 'new /etc/containers/registries\.conf\.d/zz-dduct\.conf' "$journal" 2> /dev/null && find_unit crio; then
        say "CRI-O follows after: systemctl reload crio"
    fi
}

# --- install and undo ---------------------------------------------------------------------------

unfinished() {
    status=$?
    [ "$status" = 0 ] || printf 'dduct setup: it broke off; run it again, or undo what it did with --undo\n' >&2
    exit "$status"
}

set_up() {
    check_proxy
    find_trust
    [ -n "$updater" ] || fail "this is no system that I know; ${proxy%%://*}://${proxy##*[@/]}/setup says what to do by hand"
    has "$updater" || fail "$updater is not here: $(install_hint)"
    begin
    say "dduct $proxy, for ${root:-this machine} ($family)"
    say "The authority that it is told to trust has the SHA-256 fingerprint"
    say "  $fingerprint"
    say "Written:"
    trust
    find_bundle
    set_environment
    set_packages
    set_services
    [ -n "$changed" ] || say "  nothing: everything was as it should be"
    trap - EXIT
    advise
}

begin() {
    for program in awk grep sed sha256sum; do command -v "$program" > /dev/null || fail "$program is not here: install it"; done
    [ -f "$journal" ] || clear_notes
    mkdir -p "$state"
    chmod 700 "$state" # what was saved may be secret
    trap unfinished EXIT
    changed=''
}

# The mark says that the system's store has been made of what lies there; a run that breaks off leaves none.
trust() {
    trusted=''
    [ ! -e "$state/trusted" ] || trusted=yes
    rm -f "$state/trusted"
    own "$anchor" "$certificate"
    authority_changed=$changed
    if [ -n "$changed" ] || [ -z "$trusted" ]; then update_trust; fi
    : > "$state/trusted"
}

# shellcheck disable=SC2086 # no argument is no word
update_trust() {
    inside "$updater" ${1:-} > "$state/updater.log" 2>&1 || {
        cat "$state/updater.log" >&2
        fail "$updater failed, see above"
    }
    rm -f "$state/updater.log"
}

advise() {
    say "New logins use it; this shell does after: . /etc/profile.d/zz-dduct.sh"
    [ -z "$units$scripts" ] || say "These services use it once they are started again: $(restart)"
    case $asks_password,$proxy in
        yes,*@*) ;;
        yes,*)
            say "dduct asks for a password: run this again with --proxy ${proxy%%://*}://USER:PASSWORD@${proxy#*://}"
            say "(it is then in files that every user of this machine can read)"
            ;;
    esac
    say "Undo: the same with --undo (.. | sudo sh -s -- --undo)"
}

undo() {
    if [ ! -f "$journal" ]; then
        clear_notes
        say "dduct setup: nothing to undo${root:+ below $root}"
        return 0
    fi
    find_trust
    trap unfinished EXIT
    say "Restored:"
    reversed "$journal" > "$state/backwards"
    # It lies in the image: what it names is looked at before anything is done about it.
    if grep -Evqx '(new|saved|made) /.*' "$journal" || grep -Eq '/\.\.?(/|$)' "$journal"; then
        fail "$journal names what we have never written: look at it, and remove it"
    fi
    while read -r verb path; do
        case $verb in new | saved) restore "$path" ;; esac
    done < "$state/backwards"
    if [ -n "$updater" ] && grep -qxF -e "new $anchor" -e "saved $anchor" "$journal"; then forget_authority; fi
    while read -r verb path; do
        if [ "$verb" = made ] && locate "$path" && [ -d "$root$found" ] && [ ! -L "$root$found" ]; then
            rmdir "$root$found" 2> /dev/null || say "  $root$path has something in it by now, and stays"
        fi
    done < "$state/backwards"
    undo_services
    say_mirror_restart
    trap - EXIT
    clear_notes
    [ ! -d "$state" ] || say "What had been changed by others is kept in $state/kept"
}

# The journal goes first: what is left without it means nothing.
clear_notes() {
    for name in journal after before next backwards trusted updater.log; do rm -rf "${state:?}/$name"; done
    if [ -d "$state" ]; then rmdir "$state" 2> /dev/null || :; fi
}

reversed() { sed '1!G;h;$!d' "$1"; }

forget_authority() {
    has "$updater" || fail "$updater is not here any more: install ca-certificates, and undo again"
    update_trust "$afresh"
}

undo_services() {
    units=$(sed -n 's|^new /etc/systemd/system/\(.*\)\.service\.d/zz-dduct\.conf$| \1|p' "$journal" | tr -d '\n')
    scripts=$(sed -n 's|^[a-z]* /etc/conf\.d/| |p; s|^[a-z]* /etc/rancher/k3s/\(.*\)\.env$| \1|p' "$journal" | tr -d '\n')
    [ -z "$units" ] || reload_systemd
    [ -z "$units$scripts" ] || say "These services go without it once they are started again: $(restart)"
}

restart() {
    how=${units:+systemctl restart$units}
    for script in $scripts; do how="$how${how:+; }rc-service $script restart"; done
    say "$how"
}

restore() {
    aim "$1" || return 0
    rm -f "$file.dduct-new"
    if [ ! -e "$file" ]; then
        [ ! -e "$state/before$1" ] || lost "$1"
        return 0
    fi
    if same "$file" "$state/before$1"; then return 0; fi
    if ! is_ours "$1"; then
        keep "$1"
        if ! is_ours_alone "$1"; then
            take_out "$1"
            return 0
        fi
    fi
    if [ -e "$state/before$1" ]; then
        cp -p "$state/before$1" "$file.dduct-new"
        mv -f "$file.dduct-new" "$file"
        relabel "$file"
    else
        rm -f "$file"
    fi
    say "  $root$1"
}

is_ours_alone() {
    for left in "$state/after$1" "$state/next$1"; do
        if [ -e "$left" ]; then
            if grep -qxF "$begin" "$left"; then return 1; fi
            return 0
        fi
    done
    return 1 # we have never got so far as to write it
}

lost() {
    copy "$state/before$1" "$state/kept$1"
    say "  $1 has been removed since, and is not brought back; as it was it is in $root$store/kept$1"
}

# The file was edited: other lines stay in it, and ours go.
take_out() {
    cp -p "$file" "$file.dduct-new"
    without_block "$1" > "$file.dduct-new"
    mv -f "$file.dduct-new" "$file"
    relabel "$file"
    say "  $root$1, without our lines"
}

main() {
    options "$@"
    if [ "$action" = help ]; then
        usage
        return 0
    fi
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root: .. | sudo sh"
    "$action"
}

# In braces, so that a script that has not arrived as a whole is none.
{ main "$@"; }
