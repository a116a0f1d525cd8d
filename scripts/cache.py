"""The vectors that are kept on disk: list them, check them, remove them."""

from __future__ import annotations

from typing import Annotated

import typer

from clsprobe.probes.errors import InputError, unknown


def cache(
    what: Annotated[str, typer.Argument(help="ls, verify or purge")],
    keys: Annotated[list[str] | None, typer.Argument(help="which; default: all", metavar="[KEY]...")] = None,
    cache: Annotated[
        str | None, typer.Option(help="the folder; default: $CLSPROBE_HOME, else ~/.cache/clsprobe")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """The vectors that are kept on disk: list them, read them against their digests, or remove them."""
    from clsprobe.probes.extraction.store import cache_folder, listing, purge, verify

    if what not in ("ls", "verify", "purge"):
        raise unknown("cache", "action", what, ("ls", "verify", "purge"))
    folder = cache_folder(cache)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder}", "is not a folder", "Name the folder of a cache")
    if cache is not None and not folder.exists():
        raise InputError(f"--cache {folder}", "does not exist", "Name the folder of a cache")
    there = {one.folder.name: one for one in listing(folder)}
    for key in keys or ():
        if not there:
            raise InputError(f"cache {what}", f"unknown key '{key}'", f"There is none in {folder}")
        if key not in there:
            raise unknown(f"cache {what}", "key", key, there)
    chosen = [one for key, one in there.items() if not keys or key in keys]
    damaged, kept = 0, list[str]()
    for one in chosen:
        told = one.told()
        if what == "verify":
            bad = verify(one.folder)
            damaged += len(bad)
            told += f"  set aside: {', '.join(bad)}" if bad else "  sound" if one.manifest else ""
        elif what == "purge" and not purge(one.folder):
            told += "  in use: kept"
            kept.append(one.folder.name)
        typer.echo(told)
    done = [one for one in chosen if one.folder.name not in kept]
    told = f"{len(done):,} {'entry' if len(done) == 1 else 'entries'}, {sum(one.bytes for one in done) / 1e9:.2f} GB"
    typer.echo(f"{folder}: {told}{' removed' if what == 'purge' else ''}")
    if damaged:
        files = "1 file is" if damaged == 1 else f"{damaged:,} files are"
        raise InputError(str(folder), f"{files} damaged or missing", "Run again what needs them; they are made anew")
    if kept:
        raise InputError(f"cache purge {' '.join(kept)}", "in use", "Wait for the runs that use it to end")
