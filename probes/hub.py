"""The Hugging Face hub: whether it can be reached, and the contents of its cache on this machine.

`huggingface_hub` is imported inside the functions, because the import is slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import UnsuitableFile, read_content, read_error, stays_inside

Kind = Literal["models", "datasets"]
COMMIT = re.compile(r"[0-9a-f]{7,64}")  # a name in the cache is made of it
LARGEST_COMMIT = 4096  # bytes of a file that holds one


def hub_is_reachable() -> bool:
    """One quick request, because the hub's own calls retry for 20 seconds when there is no network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=2)
    except Exception:  # offline mode, no name server, no route, too slow
        return False
    return True


def cached_folder(repository: str, files: Sequence[str], revision: str | None = None) -> Path | None:
    """The cached snapshot of a model that has one of these files, or None.

    Raises ValueError if `repository` is not a valid name on the hub, and InputError as `cached_commit` does.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repository)
    commit = cached_commit("models", repository, revision or "main") or revision
    for file in files:
        if isinstance(path := try_to_load_from_cache(repository, file, revision=commit), str):
            return Path(path).parent
    return None


def cached_names(kind: Kind) -> list[str]:
    """The full names, ORG/NAME, of the models or data sets in the cache."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob(f"{kind}--*/snapshots"))
    return [folder.parent.name.removeprefix(f"{kind}--").replace("--", "/") for folder in folders]


def cached_commit(kind: Kind, name: str, revision: str) -> str | None:
    """The commit of a branch or tag when the hub was last reached; None if it is not in the cache.

    Raises InputError for a cache that holds something else in its place.
    """
    from huggingface_hub import constants

    if not stays_inside(revision):
        return None
    path = Path(constants.HF_HUB_CACHE, f"{kind}--" + name.replace("/", "--"), "refs", revision)
    try:
        commit = read_content(path, largest=LARGEST_COMMIT).decode().strip()
    except UnsuitableFile as error:
        raise read_error(str(path), error, "Remove it, and download again") from None
    except (OSError, ValueError):
        return None
    if not COMMIT.fullmatch(commit):
        raise InputError(str(path), "holds no commit", "Remove it, and download again")
    return commit


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The name most similar to a mistyped one, with or without its organisation; None if none is similar."""
    known: dict[str, str] = {}
    for full in names:
        known |= {full: full, full.rpartition("/")[2]: full}
    guess = did_you_mean(name, known) or did_you_mean(name.rpartition("/")[2], known)
    return known[guess] if guess else None
