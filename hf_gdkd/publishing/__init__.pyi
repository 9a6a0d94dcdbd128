from .card import Origin as Origin
from .card import write_card as write_card
from .reports import push_space as push_space
from .trainer_card import write_trainer_card as write_trainer_card
from .upload import push as push
