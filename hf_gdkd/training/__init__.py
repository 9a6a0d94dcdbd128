"""The training of a student: its configuration, its trainer, its teacher, and all that keeps a run safe."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
