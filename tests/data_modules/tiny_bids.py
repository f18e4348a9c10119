"""A BIDS dataset of a few lines: tables as text, images as empty files (a table opens none of them)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def tiny_bids(
    root: Path,
    participants: str | bytes | None,
    *,
    sessions: Mapping[str, str] | None = None,
    images: Iterable[str] = (),
    described: Mapping[str, str] | None = None,
) -> Path:
    """Columns are set apart by spaces, which become tabs; `described` are JSON files by their stem.

    `images` are like 01, 01/2 (session) or 01/2/1 (run).
    """
    files: dict[str, str | bytes] = {f"{name}.json": text for name, text in (described or {}).items()}
    for person, text in (sessions or {}).items():
        files[f"sub-{person}/sub-{person}_sessions.tsv"] = table(text)
    for image in images:
        files[image_path(image)] = ""
    if participants is not None:
        files["participants.tsv"] = table(participants) if isinstance(participants, str) else participants
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def table(text: str) -> str:
    """Lines of cells that are set apart by spaces, as tab-separated text.

    >>> table("a  b\\n 1 2")
    'a\\tb\\n1\\t2\\n'
    """
    return "".join("\t".join(line.split()) + "\n" for line in text.strip().splitlines())


def image_path(image: str) -> str:
    """sub-01/ses-2/anat/sub-01_ses-2_run-1_T1w.nii.gz of 01/2/1; an empty part is left out."""
    parts = dict(zip(("sub", "ses", "run"), image.split("/"), strict=False))
    said = [f"{key}-{label}" for key, label in parts.items() if label]
    folder = "/".join(word for word in said if not word.startswith("run-"))
    return f"{folder}/anat/{'_'.join(said)}_T1w.nii.gz"
