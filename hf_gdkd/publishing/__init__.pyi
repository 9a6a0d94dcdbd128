from .card import Origin as Origin
from .card import write_card as write_card
from .reports import push_space as push_space
from .upload import push as push
