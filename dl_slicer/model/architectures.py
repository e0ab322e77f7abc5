"""Names of the networks, for command lines. This module needs no torch."""

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NO_NETWORK = f"none of {', '.join(ARCHITECTURES)}"
