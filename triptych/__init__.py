"""Triptych: GRR-CoCa, MaMMUT and VW-LMM as transformers models. Importing it makes the Auto classes know them.

It imports neither torch nor transformers: what `__init__.pyi` lists arrives when it is touched.
"""

import lazy_loader

from triptych import auto_classes


__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

auto_classes.announce()
