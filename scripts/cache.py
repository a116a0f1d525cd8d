"""`clsprobe cache`: list, verify or remove the vectors stored on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from clsprobe.probes.errors import InputError, format_names, unknown
from clsprobe.terminal import echo


def cache(
    what: Annotated[str, typer.Argument(help="ls, verify or purge")],
    keys: Annotated[list[str] | None, typer.Argument(help="which; default: all", metavar="[KEY]...")] = None,
    cache: Annotated[
        str | None, typer.Option(help="the folder; default: $CLSPROBE_HOME, else ~/.cache/clsprobe")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """The vectors that are kept on disk: list them, read them against their digests, or remove them."""
    from clsprobe.probes.extraction.store import find_cache_folder, list_cache, purge, verify

    if what not in ("ls", "verify", "purge"):
        raise unknown("cache", "action", what, ("ls", "verify", "purge"))
    folder = find_cache_folder(cache)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder}", "is not a folder", "Name the folder of a cache")
    if cache is not None and not folder.exists():
        raise InputError(f"--cache {folder}", "does not exist", "Name the folder of a cache")
    entries = {entry.folder.name: entry for entry in list_cache(folder)}
    for key in keys or ():
        if not entries:
            raise InputError(f"cache {what}", f"unknown key '{key}'", f"There is none in {folder}")
        if key not in entries:
            raise unknown(f"cache {what}", "key", key, entries)
    chosen = [entry for key, entry in entries.items() if not keys or key in keys]
    damaged_files, in_use = 0, list[str]()
    for entry in chosen:
        line = entry.summary()
        if what == "verify":
            damaged = verify(entry.folder)
            damaged_files += len(damaged)
            line += f"  set aside: {format_names(damaged)}" if damaged else "  sound" if entry.manifest else ""
        elif what == "purge" and not purge(entry.folder):
            line += "  in use: kept"
            in_use.append(entry.folder.name)
        echo(line)
    done = [entry for entry in chosen if entry.folder.name not in in_use]
    gigabytes = sum(entry.bytes for entry in done) / 1e9
    summary = f"{len(done):,} {'entry' if len(done) == 1 else 'entries'}, {gigabytes:.2f} GB"
    echo(f"{folder}: {summary}{' removed' if what == 'purge' else ''}")
    if damaged_files:
        files = "1 file is" if damaged_files == 1 else f"{damaged_files:,} files are"
        raise InputError(str(folder), f"{files} damaged or missing", "Run again what needs them; they are made anew")
    if in_use:
        raise InputError(f"cache purge {' '.join(in_use)}", "in use", "Wait for the runs that use it to end")
