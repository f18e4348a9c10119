"""From the words of an OASIS-3 clinical visit to CN, MCI, AD, other or nothing: one rule, in one place.

Sources of the coding: the NACC Uniform Data Set forms D1 and B4, versions 2 and 3, that OASIS-3 publishes as
OASIS3_UDSd1_diagnoses.csv and OASIS3_UDSb4_cdr.csv; older exports ("ADRC Clinical Data") hold dx1 and cdr only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

FLAGS = ("normcog", "demented", "impnomci", "mciamem", "mciaplus", "mcinon1", "mcinon2", "probad", "possad", "alzdis")
# 1: primary cause, 2 or 3: contributing or not; version 3 replaces probable and possible by alzdis
QUALIFIERS = {"probad": "probadif", "possad": "possadif", "alzdis": "alzdisif"}
_STATES = {
    "NORMCOG": ("normcog",),
    "MCI": ("mciamem", "mciaplus", "mcinon1", "mcinon2"),  # MCIAPEX and its like say which kind, never whether
    "IMPNOMCI": ("impnomci",),
    "DEMENTED": ("demented",),
}
_NORMAL_TEXTS = ("cognitively normal", "no dementia")
_ALZHEIMER_TEXT = re.compile(r"^(ad dem|ad dementia|dat)\b")
_NOT_PRIMARY = "cannot be primary"


class Diagnosis(NamedTuple):
    code: str | None  # CN, MCI, AD, other; None: the visit says nothing
    detail: str | None  # the cohort's own word, or what contradicts what


def diagnose(visit: Mapping[str, float | str | None]) -> Diagnosis:
    """Diagnosis at one clinical visit: keys FLAGS and their QUALIFIERS (0, 1, 2), cdr (0 to 3), dx1 (text).

    1. Form D1 decides where it names exactly one state: NORMCOG: CN; one of the four kinds of MCI: MCI; IMPNOMCI:
       other; DEMENTED: AD where Alzheimer's disease is named (PROBAD, POSSAD or alzdis) and not as a merely
       contributing cause, else other.
    2. Contradictions are `other`, never resolved by priority: two states at once, NORMCOG with a CDR of 1 or more
       (dementia by definition), DEMENTED with a CDR of 0. A CDR of 0.5 goes with everything and decides nothing.
    3. Without a state, dx1 decides: "Cognitively normal" and "No dementia": CN; "AD dem..." and "DAT..." (dementia of
       Alzheimer's type), unless "cannot be primary": AD; every other text, "uncertain dementia" included: other.
    4. Without either, a CDR of 0 is CN and any other is `other`: how impaired, not why.
    Cells that hold anything but the codes of their form count as empty.

    >>> diagnose({"normcog": 1.0, "cdr": 0.5, "dx1": "uncertain dementia"})
    Diagnosis(code='CN', detail='uncertain dementia')
    >>> diagnose({"demented": 1.0, "alzdis": 1.0, "alzdisif": 2.0}).code
    'other'
    >>> diagnose({"normcog": 1.0, "demented": 1.0})
    Diagnosis(code='other', detail='contradiction: NORMCOG and DEMENTED')
    >>> diagnose({"dx1": "AD dem cannot be primary"}).code, diagnose({"dx1": "DAT w/depresss, contribut"}).code
    ('other', 'AD')
    """
    dx1, cdr = _text(visit.get("dx1")), visit.get("cdr")
    states = [name for name, flags in _STATES.items() if any(_is(visit, flag, 1) for flag in flags)]
    against = _contradiction(states, cdr)
    if against:
        return Diagnosis("other", f"contradiction: {against}")
    if states:
        detail = dx1 or states[0]
        if states[0] == "DEMENTED":
            return Diagnosis("AD" if _is_alzheimer(visit) else "other", detail)
        return Diagnosis({"NORMCOG": "CN", "MCI": "MCI"}.get(states[0], "other"), detail)
    if dx1:
        return Diagnosis(_code_of(dx1), dx1)
    if cdr in (0, 0.5, 1, 2, 3):
        return Diagnosis("CN" if cdr == 0 else "other", f"CDR {cdr:g}")
    return Diagnosis(None, None)


def _contradiction(states: list[str], cdr: float | str | None) -> str:
    if len(states) > 1:
        return " and ".join(states)
    if states == ["NORMCOG"] and cdr in (1, 2, 3):
        return f"NORMCOG and CDR {cdr:g}"
    if states == ["DEMENTED"] and cdr == 0:
        return "DEMENTED and CDR 0"
    return ""


def _is_alzheimer(visit: Mapping[str, float | str | None]) -> bool:
    return any(
        _is(visit, flag, 1) and not _is(visit, qualifier, 2) and not _is(visit, qualifier, 3)
        for flag, qualifier in QUALIFIERS.items()
    )


def _is(visit: Mapping[str, float | str | None], name: str, code: int) -> bool:
    return visit.get(name) == code


def _code_of(dx1: str) -> str:
    words = " ".join(re.sub(r"[^a-z0-9.]+", " ", dx1.lower()).split())
    if words in _NORMAL_TEXTS:
        return "CN"
    return "AD" if _ALZHEIMER_TEXT.match(words) and _NOT_PRIMARY not in words else "other"


def _text(value: float | str | None) -> str | None:
    """A dx1 that says something: exports write a dot, or a list letter, where there is none."""
    return value if isinstance(value, str) and len(value.strip()) > 1 else None
