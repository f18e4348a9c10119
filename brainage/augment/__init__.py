"""Views: several random versions of each subject, made on the device from a few numbers drawn on the CPU.

`draw_views` turns (seed, step, sample key, view) into parameters, `apply_views` turns parameters into images. The two
are apart so that a view can be repeated, inspected and tested without images, whatever the batch it came in.
"""

from brainage.augment.apply import apply_views
from brainage.augment.draw import ViewParameters, check_augment, draw_views

__all__ = ["ViewParameters", "apply_views", "check_augment", "draw_views"]
