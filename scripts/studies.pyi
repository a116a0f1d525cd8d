# The studies of clsprobe, for type checkers and editors; at run time `studies.py` imports each when it is first used.

from .aggregate import Aggregate as Aggregate
from .fine_tuning import FineTuning as FineTuning
from .formation import Formation as Formation
from .geometry import Geometry as Geometry
from .order import Order as Order
from .poolings import Poolings as Poolings
from .positions import Positions as Positions
from .reconstruct import Reconstruct as Reconstruct
from .run import Run as Run
from .trajectory import Trajectory as Trajectory
