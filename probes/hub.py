"""The Hugging Face hub: whether it can be reached, and the contents of its cache on this machine.

`huggingface_hub` is imported inside the functions, because the import is slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from clsprobe.probes.errors import did_you_mean

Kind = Literal["models", "datasets"]


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

    Raises ValueError if `repository` is not a valid name on the hub.
    """
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        if isinstance(path := try_to_load_from_cache(repository, file, revision=revision), str):
            return Path(path).parent
    return None


def cached_names(kind: Kind) -> list[str]:
    """The full names, ORG/NAME, of the models or data sets in the cache."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob(f"{kind}--*/snapshots"))
    return [folder.parent.name.removeprefix(f"{kind}--").replace("--", "/") for folder in folders]


def cached_commit(kind: Kind, name: str, revision: str) -> str | None:
    """The commit of a branch or tag when the hub was last reached; None if it is not in the cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"{kind}--" + name.replace("/", "--"), "refs", revision)
    try:
        return folder.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The name most similar to a mistyped one, with or without its organisation; None if none is similar."""
    known: dict[str, str] = {}
    for full in names:
        known |= {full: full, full.rpartition("/")[2]: full}
    guess = did_you_mean(name, known) or did_you_mean(name.rpartition("/")[2], known)
    return known[guess] if guess else None
