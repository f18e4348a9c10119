"""Names of the losses, importable without torch so that a typo is refused before anything slow starts."""

CONTRASTIVE_NAMES = ("exp", "yaware", "infonce", "supcon")
SUPERVISED_NAMES = ("l1", "l2", "huber")
