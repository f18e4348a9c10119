"""Why scans are left out, counted: reasons name files, images and people, so that no two of them are equal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from brainage.data.exclusion import REASON, rule_of

DAMAGED = "damaged: "  # what the reason of a scan that could not be read begins with

_QUOTED = re.compile(r"""(?<!\w)('[^']*'|"[^"]*")""")
_WEIGHTING = re.compile(r"T[12]w?")


def kind_of(reason: str) -> str:
    """A reason without what belongs to one scan: quotes, paths, ids, numbers, and what follows a colon.

    >>> kind_of("/data/IXI.csv: repeated row of IXI010, its first one is kept")
    'repeated row of …, its first one is kept'
    >>> kind_of("second T1 of this session, after I13190, which is preferred (no repeat)")
    'second T1 of this session, after …, which is preferred (no repeat)'
    >>> kind_of("damaged: vbm/sub-01.npy: truncated"), kind_of("excluded by data.exclude: qc_pass == 0 (qc_pass 0)")
    ('damaged', 'excluded by data.exclude: qc_pass == 0')
    """
    if ruled := rule_of(reason):
        return ruled
    parts = [" ".join(map(_masked, part.split())) for part in _QUOTED.sub("…", reason).split(": ")]
    told = [part for part in parts if set(part) - set("… ")]
    return told[0] if told else "…"


def count_kinds(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Each kind of reason with its scans, the most frequent first; a reason that is all of its kind stays as it is.

    >>> count_kinds(["no row of p1", "no row of p2", "zip without T1/T1_brain.nii.gz"])
    [('no row of …', 2), ('zip without T1/T1_brain.nii.gz', 1)]
    """
    found: dict[str, list[str]] = {}
    for reason in reasons:
        found.setdefault(kind_of(reason), []).append(reason)
    counted = [(kind if len(set(each)) > 1 else each[0], len(each)) for kind, each in found.items()]
    return sorted(counted, key=lambda one: -one[1])


def other_images(dropped: pd.DataFrame) -> pd.DataFrame:
    """Damaged scans of whose session another image was left out: KEY, path, reason, and the first `other_path`.

    Which image of a session is used is chosen by the tables, before any is read.
    """
    session = ["cohort", "participant_id", "session_id"]
    reasons = dropped["reason"].astype(str)
    damaged = reasons.str.startswith(DAMAGED)
    spare = dropped["path"].notna() & ~damaged & ~reasons.str.startswith(REASON) & (reasons != "withdrawn")
    others = dropped.loc[spare, [*session, "path"]].drop_duplicates(session).rename(columns={"path": "other_path"})
    return dropped[damaged].merge(others, on=session)


def left_out_lines(dropped: pd.DataFrame, listed: Path) -> list[str]:
    """Warnings after preparation: how many scans were left out and why, listed in the file `listed`, and where a
    damaged scan could be replaced."""
    reasons = dropped["reason"].astype(str)
    damaged, ruled = reasons.str.startswith(DAMAGED), reasons.str.startswith(REASON)
    first = dropped[damaged if damaged.any() else damaged.notna()].iloc[0]
    kinds = count_kinds(reasons[~damaged & ~ruled])
    most = f", most of them: {kinds[0][0]} ({kinds[0][1]})" if len(kinds) > 1 else ""
    lines = [
        f"{len(reasons)} scans left out ({damaged.sum()} damaged, {ruled.sum()} by data.exclude, "
        f"{sum(count for _, count in kinds)} not usable by the cohort's tables{most}); {listed} lists each with its "
        f"reason; for example {first['participant_id']}: {first['reason']}"
    ]
    again = other_images(dropped)
    if len(again):
        one = again.iloc[0]
        lines.append(
            f"damaged scans of whose session another image was left out: {len(again)}, for example "
            f"{one['path']}: {one['other_path']}; to use those, mend the damaged files or move them away, delete the "
            "store and prepare it again"
        )
    return lines


def _masked(word: str) -> str:
    """The word, or an ellipsis between its punctuation where it may be an id, a path or a number."""
    bare = word.strip("`.,;:()[]")
    if not bare or _WEIGHTING.fullmatch(bare) or not ("/" in bare or "\\" in bare or re.search(r"\d", bare)):
        return word
    return word.replace(bare, "…")
