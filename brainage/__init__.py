"""Brain age from structural MRI with age-aware contrastive learning."""

__version__ = "0.1.0"
