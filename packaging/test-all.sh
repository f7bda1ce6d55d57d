#!/bin/sh
# Run the tests with every Python from 3.9 to 3.13 that is found, or with those named as arguments (3.9 3.13).
# 3.9 gets cryptography 3.4.8 and 3.11 gets 38.0.4, as the distributions that ship them do; the others get the newest.
set -u
cd "$(dirname "$0")/.." || exit 1

find_python() {
    for candidate in "$HOME"/.pyenv/versions/"$1".*/bin/python "$(command -v "python$1" || true)"; do
        if [ -x "$candidate" ] && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null
        then echo "$candidate"; return 0; fi
    done
    return 1
}

failed=0
summary=""
for version in ${*:-3.9 3.10 3.11 3.12 3.13}; do
    if ! python=$(find_python "$version"); then
        summary="$summary
python$version: not found"
        [ $# -eq 0 ] || failed=1
        continue
    fi
    case $version in
        3.9) cryptography="cryptography==3.4.8" ;;
        3.11) cryptography="cryptography==38.0.4" ;;
        *) cryptography="cryptography" ;;
    esac
    venv=.venv-$version
    if [ ! -e "$venv/.stamp" ] || [ tests/requirements.txt -nt "$venv/.stamp" ]; then
        "$python" -m venv "$venv" &&
            "$venv/bin/pip" install -q --disable-pip-version-check "$cryptography" -r requirements.txt -r tests/requirements.txt &&
            touch "$venv/.stamp"
    fi
    echo "== python$version, $cryptography"
    # shellcheck disable=SC2086
    if "$venv/bin/python" -m pytest -q -rs -n auto tests/unit tests/system ${PYTEST_ARGS:-}; then result=passed; else result=FAILED; failed=1; fi
    summary="$summary
python$version, $("$venv/bin/python" -c 'import cryptography; print("cryptography", cryptography.__version__)'): $result"
done
echo "$summary"
exit $failed
