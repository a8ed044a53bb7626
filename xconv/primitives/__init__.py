"""What algorithms ask of an array library beyond the array-API standard, made of what is in the standard.

Every library can do with it; nothing here knows of any.
"""

from ._costs import KEPT, Costs, Product
from ._fourier import Grid, block_order
from ._pieces import along, device, inverse, joined, pad, zeros
from ._pooling import divisor, own
from ._primitives import Piece, Primitives, Team, Whole
from ._spectra import Matrices, Rows

__all__ = [
    "KEPT",
    "Costs",
    "Grid",
    "Matrices",
    "Piece",
    "Primitives",
    "Product",
    "Rows",
    "Team",
    "Whole",
    "along",
    "block_order",
    "device",
    "divisor",
    "inverse",
    "joined",
    "own",
    "pad",
    "zeros",
]
