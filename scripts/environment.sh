# Shared by ./vplan and ./check: a virtual environment with the project installed, made once and kept until
# pyproject.toml changes. make_environment DIR REQUIREMENT
find_python() {
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "vplan needs Python 3.11 or newer on PATH" >&2
    return 1
}

make_environment() {
    stamp="$1/.vplan-$(printf '%s' "$2" | cksum | cut -d' ' -f1)-$(cksum <"$here/pyproject.toml" | cut -d' ' -f1)"
    [ -f "$stamp" ] && return 0
    echo "installing vplan $2 into $1 (once) ..." >&2
    [ -x "$1/bin/python" ] || "$(find_python)" -m venv "$1"
    (cd "$here" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$2") >&2
    : >"$stamp"
}
