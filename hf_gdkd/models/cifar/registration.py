"""Makes the networks known to transformers' Auto classes, when and if these are imported.

So `import hf_gdkd` costs nothing where the losses alone are wanted, and it does not matter whether transformers is
imported before it or after.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
CONFIGURATION = "hf_gdkd.models.cifar.configuration"  # registers itself


class _WhenImported(MetaPathFinder):
    """Lets CONFIGURATION follow the import of AUTO_CONFIG, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            import_module(CONFIGURATION)

        spec.loader.exec_module = load_and_register
        return spec


def register() -> None:
    """Register the networks now, or as soon as transformers' AutoConfig is imported."""
    if AUTO_CONFIG in sys.modules:
        import_module(CONFIGURATION)
    else:
        sys.meta_path.insert(0, _WhenImported())
