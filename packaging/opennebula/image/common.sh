# What an appliance.sh may call. The same names as in OpenNebula's one-apps, for images that are built without it.
# shellcheck shell=bash

# msg TYPE TEXT…: a line of the log.
msg()
{
    local type="$1"
    shift
    printf '[%s] %s: %s\n' "$(date -u +%FT%TZ)" "${type^^}" "$*" >&2
    [[ "$type" != error ]]
}

# gen_password LENGTH
gen_password()
{
    LC_ALL=C tr -dc '[:alnum:]' < <(openssl rand "$((${1:-16} * 32))") | head -c "${1:-16}"
    echo
}

get_local_ip()
{
    ip -o -4 addr show scope global | awk '{ sub("/.*", "", $4); print $4; exit }'
}

# is_true NAME: whether the variable of that name says yes.
is_true()
{
    [[ "${!1,,}" =~ ^(1|true|yes|y)$ ]]
}

create_one_service_metadata()
{
    {
        printf -- '---\nname: "%s"\nversion: "%s"\nbuild: %s\n' "$ONE_SERVICE_NAME" "$ONE_SERVICE_VERSION" "$ONE_SERVICE_BUILD"
        printf 'short_description: "%s"\ndescription: |\n' "$ONE_SERVICE_SHORT_DESCRIPTION"
        printf '  %s\n' "${ONE_SERVICE_DESCRIPTION//$'\n'/$'\n'  }"
    } > "${DDUCT_ROOT:-}/etc/one-appliance/metadata"
}
