"""The names of depths and methods, for command lines: this module needs no torch.

How to add a saliency method:

1. Write a class with the interface of RelevanceCAM in a module of its own in this package:
   `method(model, layers)` checks the model, `method(model, layers)(images, target)` gives maps
   {"layer1": (N, h, w), ...} and logits (N, K). gradcam.py is the shortest example; resnet.py has
   the checks of arguments, and stem() and head() for the parts around the residual stages.
2. Name it in METHODS below: that adds it to `from relevance_cam import ...` and to --methods.
3. Add it to METHODS in tests/relevance_cam/test_relevance_cam.py, which holds every method to the
   interface, and test its formula in test_methods.py.
"""

# The residual stages of a torchvision ResNet, from shallow to deep.
LAYERS = ("layer1", "layer2", "layer3", "layer4")

# What a method is called on the command line: the module of this package and its class.
METHODS = {
    "relevance-cam": ("relevance_cam", "RelevanceCAM"),
    "grad-cam": ("gradcam", "GradCAM"),
    "grad-cam++": ("gradcam", "GradCAMPlusPlus"),
    "score-cam": ("scorecam", "ScoreCAM"),
}
