"""check"""


def check(model: str = "") -> None:
    """Check a model."""
