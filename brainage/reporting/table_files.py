"""Tables as files: CSV with every digit, and LaTeX (booktabs)."""

from __future__ import annotations

import re
from pathlib import Path

from brainage.data.table import write_atomically
from brainage.reporting.tables import Table

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "–": "--", "—": "---", "…": r"\dots{}", "≥": r"$\geq$", "×": r"$\times$",
}  # fmt: skip


def write_table(table: Table, folder: Path) -> None:
    """Write `<name>.csv` and `<name>.tex` (booktabs) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{table.name}.csv", lambda path: table.data.to_csv(path, index=False))
    write_atomically(folder / f"{table.name}.tex", lambda path: path.write_text(to_latex(table), encoding="utf-8"))


def to_latex(table: Table) -> str:
    """A `table` environment for the booktabs package, every character escaped."""
    columns = "".join("l" if table.is_words(name) else "r" for name in table.shown.columns)
    lines = [" & ".join(map(escape_latex, map(str, row))) + r" \\" for row in table.shown.itertuples(index=False)]
    head = " & ".join(map(escape_latex, table.shown.columns)) + r" \\"
    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"  \centering\small",
        f"  \\caption{{{escape_latex(table.caption)}}}",
        f"  \\label{{tab:{table.name}}}", f"  \\begin{{tabular}}{{{columns}}}", r"    \toprule", f"    {head}",
        r"    \midrule", *(f"    {line}" for line in lines), r"    \bottomrule", r"  \end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def escape_latex(text: str) -> str:
    r"""Text as LaTeX prints it, with the names of losses and scores set as mathematics.

    >>> escape_latex("L^exp: 5 % of site_1")
    '$L^{\\mathrm{exp}}$: 5 \\% of site\\_1'
    """
    mathematics = {"L^exp": r"$L^{\mathrm{exp}}$", "L^thr": r"$L^{\mathrm{thr}}$", "L_c": "$L_c$"}
    pieces = re.split(r"(L\^(?:exp|thr)|L_c)", text)
    return "".join(mathematics.get(piece) or "".join(LATEX.get(c, c) for c in piece) for piece in pieces)
