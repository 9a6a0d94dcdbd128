from .measurement import measure as measure
from .measurement import measure_teacher as measure_teacher
from .measurement import predict as predict
from .measurement import side_by_side as side_by_side
from .metrics import Agreement as Agreement
from .metrics import ImageClassification as ImageClassification
from .metrics import classification_metrics as classification_metrics
from .metrics import compute_metrics as compute_metrics
