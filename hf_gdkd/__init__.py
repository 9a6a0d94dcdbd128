"""Knowledge distillation for image models in the Hugging Face ecosystem.

Its names are imported when they are first used: `import hf_gdkd` is quick, and `hf_gdkd.losses` needs torch alone.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
