from .class_matching import match_labels as match_labels
from .heads import class_names as class_names
from .label_map import load_label_map as load_label_map
from .loading import load_model as load_model
from .loading import load_processor as load_processor
from .loading import load_teacher as load_teacher
from .names import SHORT_NAMES as SHORT_NAMES
from .names import resolve_name as resolve_name
