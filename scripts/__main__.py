"""The command, installed as `clsprobe` and run by `python -m clsprobe`: while it is imported, Ctrl-C just ends it."""

import signal


def main() -> None:
    """Import the command and run it."""
    if handled := signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from clsprobe import cli

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
