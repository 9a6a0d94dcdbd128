from .card import Origin as Origin
from .card import write_card as write_card
from .upload import push as push
