"""Compares a student with its teacher: the distillation losses, by class and by name."""

from .base import DistillationLoss
from .channelwise import CWDFeaturesLoss, CWDLoss
from .combined import CombinedLoss, build_loss
from .decoupled import DKDLoss, GDKD3Loss, GDKDLoss
from .features import ATLoss, CRDLoss, FeatureLoss, Features, RKDLoss
from .fitnet import FitNetLoss
from .kd import KDLoss
from .levels import DecoupledTerms, decoupled_kl
from .luminet import LumiNetLoss
from .nkd import NKDLoss
from .registry import FEATURE_LOSSES, LOSS_WEIGHTS, LOSSES, loss_options, register_loss
from .relational import DISTLoss, MLKDLoss
from .review import ReviewKDLoss
from .rld import RLDLoss
from .spherical import SKDLoss
from .ttm import TTMLoss, WTTMLoss
from .vitkd import ViTKDLoss

__all__ = [
    "FEATURE_LOSSES",
    "LOSSES",
    "LOSS_WEIGHTS",
    "ATLoss",
    "CRDLoss",
    "CWDFeaturesLoss",
    "CWDLoss",
    "CombinedLoss",
    "DISTLoss",
    "DKDLoss",
    "DecoupledTerms",
    "DistillationLoss",
    "FeatureLoss",
    "Features",
    "FitNetLoss",
    "GDKD3Loss",
    "GDKDLoss",
    "KDLoss",
    "LumiNetLoss",
    "MLKDLoss",
    "NKDLoss",
    "RKDLoss",
    "RLDLoss",
    "ReviewKDLoss",
    "SKDLoss",
    "TTMLoss",
    "ViTKDLoss",
    "WTTMLoss",
    "build_loss",
    "decoupled_kl",
    "loss_options",
    "register_loss",
]
