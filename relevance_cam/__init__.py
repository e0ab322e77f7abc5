"""Saliency maps of torchvision ResNets at the depth of any residual stage. Needs torch and torchvision, no other part of the project."""

from .gradcam import GradCAM, GradCAMPlusPlus
from .relevance_cam import RelevanceCAM
from .scorecam import ScoreCAM

__all__ = ["RelevanceCAM", "GradCAM", "GradCAMPlusPlus", "ScoreCAM"]
