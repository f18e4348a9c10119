"""The text tables that travel with cohorts, in the spellings and encodings that people and exports give them.

Every reader takes its tables through here: byte-order marks, CR line ends, semicolons, decimal commas, ages as ranges
or in months are understood, or refused with the file and the row.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import pandas as pd

from brainage.config import nearest
from brainage.errors import DataError

MISSING = ("", "NA", "N/A", "n/a", "na", "nan", "NaN", "NULL", "null", "None")
ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
OLDEST_MEDIAN_YEARS = 120.0
TRUTH = "simulation"  # folder of a simulated cohort that no reader may look into
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_RANGE = re.compile(r"\s*\d+([.,]\d+)?\s*(-|–|to)\s*\d+([.,]\d+)?\s*(y|yrs|years)?\s*", re.IGNORECASE)
_BOUND = re.compile(r"\s*([<>]=?\s*\d+([.,]\d+)?|\d+([.,]\d+)?\s*\+)\s*")
_UNITS = {"y": 1.0, "yr": 1.0, "yrs": 1.0, "year": 1.0, "years": 1.0, "m": 1 / 12, "mo": 1 / 12, "month": 1 / 12,
          "months": 1 / 12, "w": 7 / 365.25, "wk": 7 / 365.25, "wks": 7 / 365.25, "week": 7 / 365.25,
          "weeks": 7 / 365.25, "d": 1 / 365.25, "day": 1 / 365.25, "days": 1 / 365.25}  # fmt: skip
_WITH_UNIT = re.compile(rf"\s*({_NUMBER.pattern})\s*({'|'.join(_UNITS)})\s*", re.IGNORECASE)


def read_sheet(file: Path, *, usecols: Collection[str] | Callable[[str], bool] | None = None) -> pd.DataFrame:
    """A CSV or TSV (comma, semicolon or tab; optionally gzip) as text: stripped, NA where nothing is written.

    `usecols` keeps the columns of these names, or those for which it is true. Raises DataError naming the file when it
    is absent, empty, not UTF-8, has two columns of one name, or rows of another length than its header.
    """
    names = header(file)
    wanted = usecols if callable(usecols) or usecols is None else set(usecols).__contains__
    kept = [name for name in names if wanted is None or wanted(name)]
    try:
        with _text(file) as stream:
            separator = _separator(stream)
            _refuse_long_rows(file, stream, separator, len(names))
            sheet = pd.read_csv(
                stream, sep=separator, names=names, header=0, usecols=kept, dtype="string",
                keep_default_na=False, na_values=list(MISSING), skipinitialspace=True, index_col=False,
                on_bad_lines="error", skip_blank_lines=True, low_memory=False,
            )  # fmt: skip
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    except DataError:
        raise
    except Exception as error:  # pandas, gzip and csv each have their own
        raise DataError(f"{file}: not readable as a table ({' '.join(str(error).split())[:160]})") from error
    for name in sheet.columns:
        text = sheet[name].str.strip()
        sheet[name] = text.mask(text.isin(MISSING), pd.NA)
    return sheet.dropna(how="all").reset_index(drop=True)


def header(file: Path) -> list[str]:
    """Names of the columns, stripped; DataError when the file is absent, empty, not UTF-8 or repeats a name."""
    try:
        with _text(file) as stream:
            separator = _separator(stream)
            names = [name.strip() for name in next(csv.reader([stream.readline()], delimiter=separator), [])]
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    except FileNotFoundError:
        raise DataError(f"{file}: file not found") from None
    except (OSError, EOFError, csv.Error) as error:
        raise DataError(f"{file}: not readable as a table ({error})") from error
    if not any(names):
        raise DataError(f"{file}: is empty; expected a table with a header")
    # spreadsheets write a column of row numbers without a name, or end every line with a separator
    names = [name or f"unnamed_{place}" for place, name in enumerate(names)]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{file}: column {name!r} is there {names.count(name)} times; keep one")
    return names


def plain(name: str) -> str:
    """A column's name for comparison.

    >>> plain("SEX_ID (1=m, 2=f)"), plain("Image Data ID"), plain("f.31.0.0")
    ('sex_id', 'image_data_id', 'f_31_0_0')
    """
    return re.sub(r"[\s.\-]+", "_", re.sub(r"\(.*?\)", "", name).strip().lower()).strip("_")


def columns(
    names: Iterable[str], spellings: Mapping[str, Iterable[str]], file: Path, required: Collection[str] = ()
) -> dict[str, str]:
    """Our name -> the column of this file, for those it has; the earlier spelling wins.

    Raises DataError naming the file, the first required column that is missing, and the nearest one that is there; and
    where two columns have such a name (Age, AGE) but not the same cells.
    """
    names = list(names)
    found = _matches(names, spellings)
    for ours in required:
        if ours not in found:
            known = list(spellings[ours])
            raise DataError(f"{file}: column {' or '.join(known)} missing{nearest(known[0], names)}")
    for theirs in found.values():
        alike = [name for name in names if plain(name) == plain(theirs)]
        if len(alike) > 1 and not _equal_cells(file, alike):
            raise DataError(f"{file}: columns {' and '.join(alike)} have one name and different cells; keep one")
    return found


def _matches(names: Iterable[str], spellings: Mapping[str, Iterable[str]]) -> dict[str, str]:
    present: dict[str, str] = {}
    for name in names:
        present.setdefault(plain(name), name)
    theirs = {ours: [plain(word) for word in known if plain(word) in present] for ours, known in spellings.items()}
    return {ours: present[words[0]] for ours, words in theirs.items() if words}


def _equal_cells(file: Path, names: list[str]) -> bool:
    if not file.is_file():
        return False
    cells = read_sheet(file, usecols=names).astype(object)
    cells = cells.where(cells.notna(), "")
    return all(cells[name].tolist() == cells[names[0]].tolist() for name in names)


def find_sheets(
    root: Path, spellings: Mapping[str, Iterable[str]], required: Collection[str], *, depth: int = 1
) -> list[Path]:
    """Tables in `root`, or up to `depth` folders down, that have the required columns, whatever their name; sorted.

    Files that are no readable table are passed over: folders hold other CSV files too.
    """
    found = []
    for file in _tables(root, depth):
        try:
            if set(required) <= set(_matches(header(file), spellings)):
                found.append(file)
        except DataError:
            continue
    return found


def numbers(column: pd.Series) -> pd.Series:
    """float64; decimal commas are understood, NaN where there is no number.

    >>> numbers(pd.Series(["71,5", "3e2", "1,234,567", "old", None])).tolist()
    [71.5, 300.0, nan, nan, nan]
    """
    text = column.astype("string").str.strip()
    text = text.where(text.str.fullmatch(_NUMBER.pattern).fillna(False))
    return pd.to_numeric(text.str.replace(",", ".", regex=False), errors="coerce").astype("float64")


def years(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Ages in years (float64), and for each cell that is written but is no age the reason (else NA).

    A range or a bound is no age, whatever its middle; a unit that is written is converted.

    >>> ages, reasons = years(pd.Series(["71,5", "60-65", "89+", "18 months", "?", None]))
    >>> ages.tolist()
    [71.5, nan, nan, 1.5, nan, nan]
    >>> reasons.dropna().tolist()
    ["age '60-65' is a range", "age '89+' is a bound", "age '?' is not a number"]
    """
    text = column.astype("string").str.strip()
    ages = numbers(text)
    unit = text.str.extract(f"^{_WITH_UNIT.pattern}$", flags=re.IGNORECASE)
    factor = unit.iloc[:, -1].str.lower().map(_UNITS)
    ages = ages.fillna(numbers(unit.iloc[:, 0]) * factor.astype("float64"))
    what = pd.Series("is not a number", index=text.index, dtype="string")
    what = what.mask(text.str.fullmatch(_RANGE.pattern, flags=re.IGNORECASE).fillna(False), "is a range")
    what = what.mask(text.str.fullmatch(_BOUND.pattern).fillna(False), "is a bound")
    return ages, ("age '" + text + "' " + what).where(text.notna() & ages.isna())


def refuse_months(ages: pd.Series, file: Path) -> None:
    """DataError where a whole column can only be months or days: half of it above 120."""
    median = ages.median()
    if median > OLDEST_MEDIAN_YEARS:
        raise DataError(f"{file}: median age is {median:g}: expected years; are these months or days?")


def sexes(column: pd.Series, file: Path, codes: Mapping[str, str]) -> pd.Series:
    """F, M or NA by `codes` (lower-case code -> F | M); DataError naming row and value of an unknown code.

    Numbers may be written as 1 or 1.0. The words female, male, f and m are always known.
    """
    known = {"female": "F", "male": "M", "f": "F", "m": "M", **codes}
    text = column.astype("string").str.strip().str.lower().str.removesuffix(".0")
    found = text.map(known).astype("string")
    for row in found.index[text.notna() & found.isna()]:
        raise DataError(
            f"{file}: row {row + 1}: sex {column[row]!r}: expected one of {', '.join(sorted(known))}, or nothing"
        )
    return found


def _tables(root: Path, depth: int) -> list[Path]:
    files, folders = [], []
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name == TRUTH:
            continue
        if path.is_dir():
            folders.append(path)
        elif path.name.lower().endswith(ENDINGS):
            files.append(path)
    if depth:
        files += [file for folder in folders for file in _tables(folder, depth - 1)]
    return files


def _text(file: Path) -> io.TextIOWrapper:
    """The file as text without its byte-order mark; CR, LF and CRLF all end a line."""
    raw = gzip.open(file, "rb") if file.name.lower().endswith(".gz") else open(file, "rb")  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None)


def _separator(stream: io.TextIOWrapper) -> str:
    """The separator of the header line; the stream is where it was."""
    line = stream.readline()
    stream.seek(0)
    quoted = re.sub(r'"[^"]*"', "", line)
    return max("\t;,", key=quoted.count)


def _refuse_long_rows(file: Path, stream: io.TextIOWrapper, separator: str, width: int) -> None:
    """DataError at the first row with more cells than the header, which pandas would cut off: most often decimal
    commas in a file that commas separate. The stream is put back to its start.

    Separators at the end of every line are a habit of exports; of some lines only, between commas, they are the empty
    cells after a decimal comma. Where every line has as many (each age with its comma), nothing tells the two apart."""
    ended, plain_lines = 0, 0  # the first line that ends with more cells than the header; lines that do not
    for number, line in enumerate(stream, start=1):
        if line.count(separator) < width:
            plain_lines += number > 1 and bool(line.strip(f"{separator} \n"))
            continue
        bare = re.sub(r'"[^"]*"', "", line)
        if '"' in bare:
            continue  # part of a cell of several lines
        cells = bare.rstrip("\n").rstrip(separator).count(separator) + 1
        if cells > width:
            raise DataError(
                f"{file}: line {number} has {cells} cells, its header {width}; are there decimal commas? Save it with "
                "semicolons, tabs or decimal points"
            )
        if separator == "," and number > 1 and bare.strip(", \n") and bare.count(",") >= width:
            ended = ended or number
        else:
            plain_lines += number > 1 and bool(bare.strip(f"{separator} \n"))
    if ended and plain_lines:
        raise DataError(
            f"{file}: line {ended} has more cells than its header ({width}), the last ones empty, others have not; "
            "are there decimal commas? Save it with semicolons, tabs or decimal points"
        )
    stream.seek(0)


def _not_utf8(file: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{file}: expected UTF-8 text, found byte {error.object[error.start]:#04x}; save it as CSV UTF-8")
