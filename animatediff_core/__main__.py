"""`python -m animatediff_core`: the command line."""

from cli.app import app

app(prog_name="animatediff")
