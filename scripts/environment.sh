# Shared by ./vplan and ./check: a virtual environment with the project installed, made once and kept until
# pyproject.toml or the lock changes, and its bytecode. make_environment DIR REQUIREMENT
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
    stamp="$1/.vplan-$(printf '%s' "$2" | cksum | cut -d' ' -f1)-$(project_sum)"
    if [ ! -f "$stamp" ]; then
        echo "installing vplan $2 into $1 (once) ..." >&2
        [ -x "$1/bin/python" ] || "$(find_python)" -m venv "$1"
        install_project "$1" "$2" >&2
        : >"$stamp"
    fi
    make_bytecode "$1"
}

project_sum() {
    cat "$here/pyproject.toml" "$here/requirements-dev.lock" 2>/dev/null | cksum | cut -d' ' -f1
}

# In the versions of the lock; where the package index lacks one of them, in any that pyproject.toml allows.
# install_project DIR REQUIREMENT
install_project() {
    if (cd "$here" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint requirements-dev.lock --editable "$2" 2>"$1/.vplan-install.log"); then
        return 0
    fi
    echo "not installed in the versions of requirements-dev.lock: $(grep -m 1 ERROR "$1/.vplan-install.log" ||
        tail -n 1 "$1/.vplan-install.log")"
    echo "installing the newest versions that pyproject.toml allows instead ..."
    (cd "$here" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$2")
}

# Compile the package as pip does for a wheel, again after a source file changed: without bytecode (as where
# PYTHONDONTWRITEBYTECODE is set) every start would compile every module. make_bytecode DIR
make_bytecode() {
    compiled="$1/.vplan-compiled"
    if [ -f "$compiled" ] && [ -d "$here/planner/__pycache__" ] &&
        [ -z "$(find "$here/planner" -name '*.py' -newer "$compiled" | head -n 1)" ]; then
        return 0
    fi
    : >"$compiled"
    "$1/bin/python" -m compileall -qq "$here/planner" >&2 || rm -f "$compiled"
}
