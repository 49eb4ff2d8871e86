"""The command line: Typer and rich, no tensor code; torch is imported inside command bodies."""
