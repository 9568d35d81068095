"""The files of `tessera plan`: demand and throughput as CSV, a layout as JSON."""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from tessera.cli.errors import CommandError
from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.demand import Kind, Service
from tessera.domain.mig.fleet import Gpu, Slice
from tessera.domain.mig.layouts import fault

_LARGEST = 1e12
"""Of demand and throughput; floats are exact enough below."""
_MOST = 100_000
"""Instances that a floor or a demand may ask for."""
_SHOWN = 60
"""Characters of a wrong cell that are repeated."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Cells by column, and where they stand."""

    place: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        found = self.cells.get(column, "").strip()
        if not found:
            raise CommandError(f"{self.place}: {column} is empty")
        _printable(f"{self.place}: {column}", found)
        return found

    def number(self, column: str) -> float:
        text = self.text(column)
        value = _number(text)
        if not 0 <= value <= _LARGEST:
            raise CommandError(
                f"{self.place}: {column} is {_cut(text)}; write a number from 0 to {_LARGEST:.0e}"
            )
        return value

    def count(self, column: str) -> int:
        if not self.cells.get(column, "").strip():
            return 0
        text = self.text(column)
        value = _number(text) if text.isdigit() else math.nan
        if not value <= _MOST:
            raise CommandError(
                f"{self.place}: {column} is {_cut(text)}; write a whole number from 0 to {_MOST}"
            )
        return int(value)


def _number(text: str) -> float:
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _printable(place: str, text: str) -> None:
    if not text.isprintable():
        raise CommandError(f"{place} is {_cut(ascii(text))}; leave out what cannot be shown")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def services(demand: str, throughput: str, board: Board) -> tuple[Service, ...]:
    """Every service of the demand with what its instances do on the board."""
    speeds = _speeds(throughput, board)
    found: dict[str, Service] = {}
    for row in _rows(demand, ("service", "demand"), ("floor",)):
        name = row.text("service")
        if name in found:
            raise CommandError(f"{row.place}: {name} stands there twice; keep one row of it")
        found[name] = Service(
            name=name,
            demand=row.number("demand"),
            floor=row.count("floor"),
            throughput=speeds.get(name, {}),
        )
        _plausible(row.place, found[name])
    if not found:
        raise CommandError(f"{demand} has no services; write one row for each")
    return tuple(found.values())


def _plausible(place: str, service: Service) -> None:
    fastest = max(service.throughput.values(), default=0.0)
    if fastest > 0 and service.demand / fastest > _MOST:
        raise CommandError(
            f"{place}: {service.name} would take more than {_MOST} instances; write demand and "
            "throughput in the same unit"
        )


def _speeds(file: str, board: Board) -> dict[str, dict[Kind, float]]:
    found: dict[str, dict[Kind, float]] = {}
    for row in _rows(file, ("service", "profile", "throughput")):
        name, profile = row.text("service"), row.text("profile")
        cut = board.cut(profile)
        if cut is None and profile != WHOLE:
            known = ", ".join((*(one.profile for one in board.cuts), WHOLE))
            raise CommandError(f"{row.place}: {board.name} has no profile {profile}, but {known}")
        kind = Kind(board.name, cut.profile if cut else WHOLE)
        if kind in found.setdefault(name, {}):
            raise CommandError(f"{row.place}: {name} on {profile} stands there twice; keep one")
        found[name][kind] = row.number("throughput")
    return found


def _rows(file: str, needed: Sequence[str], more: Sequence[str] = ()) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(_read(file), newline=""), strict=True)
    line = 1
    try:
        head = [cell.strip().lower() for cell in next(reader, [])]
        _columns(file, head, needed, more)
        line = reader.line_num + 1
        for cells in reader:
            place = f"{file}, line {line}"
            if any(cell.strip() for cell in cells):
                if len(cells) > len(head):
                    raise CommandError(f"{place}: {len(cells)} cells for {len(head)} columns")
                yield _Row(place, dict(zip(head, cells, strict=False)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise CommandError(f"{file}, line {line}: not CSV: {error}") from None


def _columns(file: str, head: Sequence[str], needed: Sequence[str], more: Sequence[str]) -> None:
    """Other columns may stand there, but not one that was to be one of these."""
    known = (*needed, *more)
    wanted = ",".join((*needed, *(f"[{column}]" for column in more)))
    if missing := [column for column in needed if column not in head]:
        raise CommandError(
            f"{file} has no column {', '.join(missing)}; its first line must name {wanted}"
        )
    if twice := [column for column in known if head.count(column) > 1]:
        raise CommandError(f"{file} has the column {twice[0]} twice; keep one")
    for column in more:
        if column not in head and (near := difflib.get_close_matches(column, head, cutoff=0.8)):
            raise CommandError(
                f"{file} has the column {_cut(near[0])}; write {column} if that is meant, or name "
                "it otherwise"
            )


def _read(file: str) -> str:
    try:
        raw = Path(file).expanduser().read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{file}, line {line}: not text in UTF-8; save it so") from None


class _Slice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    profile: str
    start: int
    service: str | None = None


class _Gpu(BaseModel):
    gpu: str
    node: str = ""
    slices: tuple[_Slice, ...] = ()


def layout(file: str, board: Board) -> tuple[Gpu, ...]:
    """GPUs as `tessera plan -o json` prints them, alone or with the plan around them."""
    try:
        read = from_json(_read(file))
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}") from None
    inner = read["layouts"] if isinstance(read, dict) and "layouts" in read else read
    try:
        found = TypeAdapter(tuple[_Gpu, ...]).validate_python(inner)
    except ValidationError as error:
        told = error.errors()[0]
        where = ".".join(map(str, told["loc"]))
        raise CommandError(
            f"{file} is no layout ({where}: {told['msg']}); write "
            '[{"gpu": NAME, "slices": [{"profile": NAME, "start": N, "service": NAME}]}], as '
            "tessera plan -o json does under layouts"
        ) from None
    names = [gpu.gpu for gpu in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CommandError(f"{file}: {twice[0]} stands there twice; names tell GPUs apart")
    return tuple(_gpu(file, gpu, board) for gpu in sorted(found, key=lambda gpu: gpu.gpu))


def _gpu(file: str, gpu: _Gpu, board: Board) -> Gpu:
    for name in (gpu.gpu, gpu.node, *(one.service or "" for one in gpu.slices)):
        _printable(f"{file}: a name", name)
    slices = []
    for one in gpu.slices:
        cut = board.cut(one.profile)
        slices.append(Slice(one.start, cut.profile if cut else one.profile, one.service))
    made = Gpu(
        name=gpu.gpu,
        board=board.name,
        node=gpu.node,
        slices=tuple(sorted(slices, key=lambda one: one.spot)),
    )
    if wrong := fault(board, made.layout):
        raise CommandError(f"{file}: {gpu.gpu} cannot be cut so: {wrong}")
    return made
