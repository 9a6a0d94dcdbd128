from .losses import build_loss as build_loss
from .training.config import GDKDConfig as GDKDConfig
from .training.teacher import Teacher as Teacher
from .training.trainer import GDKDTrainer as GDKDTrainer

__version__: str
