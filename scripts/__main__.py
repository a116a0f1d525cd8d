"""`python -m clsprobe` is the command."""

from clsprobe.cli import main

main()
