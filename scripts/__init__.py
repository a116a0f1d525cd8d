"""What does the [CLS] vector know? The public names of the package, each imported when it is first used.

They are listed once, in `__init__.pyi`, which type checkers read too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
