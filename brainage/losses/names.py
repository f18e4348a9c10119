"""Names of the losses, importable without torch so that a typo is refused before anything slow starts."""

CONTRASTIVE_NAMES = ("exp", "thr", "yaware", "infonce", "supcon", "rnc")
SUPERVISED_NAMES = ("l1", "l2", "huber")
