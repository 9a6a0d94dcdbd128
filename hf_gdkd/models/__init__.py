"""Names in, classifiers out: models, their image processors, and which class of one is which of another."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
