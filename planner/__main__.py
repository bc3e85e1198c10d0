"""`python -m planner` is `vplan`."""

from planner.cli.main import run

run()
