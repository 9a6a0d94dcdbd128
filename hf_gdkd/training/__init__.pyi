from .config import GDKDConfig as GDKDConfig
from .presets import preset_settings as preset_settings
from .teacher import Ensemble as Ensemble
from .teacher import Teacher as Teacher
from .trainer import GDKDTrainer as GDKDTrainer
