"""Names of the encoders, importable without torch so that a typo is refused before anything slow starts."""

VOLUME_NAMES = ("resnet18", "resnet34", "resnet50", "densenet121", "alexnet")
VECTOR_NAMES = ("mlp",)
ENCODER_NAMES = VOLUME_NAMES + VECTOR_NAMES
