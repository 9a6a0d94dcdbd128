from .spec import Comparison as Comparison
