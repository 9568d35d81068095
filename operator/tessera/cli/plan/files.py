"""The input files of `tessera plan`: demand and throughput as CSV, layouts as JSON."""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.domain.hardware.gpu_layouts import layout_error
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.demand import InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice

# Largest demand or throughput; floats are exact enough below.
_MAX_NUMBER = 1e12
# Most replicas that minReplicas or a demand may need.
_MAX_REPLICAS = 100_000
# Characters of a wrong cell that a message repeats.
_MAX_CELL_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _CsvRow:
    """The cells of a row by column, with the row's file and line."""

    location: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        cell = self.cells.get(column, "").strip()
        if not cell:
            raise CommandError(f"{self.location}: {column} is empty")
        _require_printable(f"{self.location}: {column}", cell)
        return cell

    def number(self, column: str) -> float:
        text = self.text(column)
        value = _parse_number(text)
        if not 0 <= value <= _MAX_NUMBER:
            raise CommandError(
                f"{self.location}: {column} is {_shorten(text)}; write a number from 0 to "
                f"{_MAX_NUMBER:.0e}"
            )
        return value

    def count(self, column: str) -> int:
        if not self.cells.get(column, "").strip():
            return 0
        text = self.text(column)
        value = _parse_number(text) if text.isdigit() else math.nan
        # Every comparison with NaN is false.
        if not value <= _MAX_REPLICAS:
            raise CommandError(
                f"{self.location}: {column} is {_shorten(text)}; write a whole number from 0 to "
                f"{_MAX_REPLICAS}"
            )
        return int(value)


def _parse_number(text: str) -> float:
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _require_printable(location: str, text: str) -> None:
    if not text.isprintable():
        raise CommandError(f"{location} is {_shorten(ascii(text))}; remove control characters")


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_CELL_SHOWN else f"{text[:_MAX_CELL_SHOWN]}..."


def read_services(demand: str, throughput: str, gpu_model: GpuModel) -> tuple[ServiceDemand, ...]:
    """Return the services of the demand file with their throughput on this GPU model.

    Raises CommandError, with file and line, for anything that is wrong in the files.
    """
    throughputs = _read_throughput(throughput, gpu_model)
    services_by_name: dict[str, ServiceDemand] = {}
    for row in _read_rows(demand, ("service", "demand"), ("minReplicas",)):
        name = row.text("service")
        if name in services_by_name:
            raise CommandError(f"{row.location}: duplicate row for {name}; keep one")
        services_by_name[name] = ServiceDemand(
            name=name,
            demand=row.number("demand"),
            min_replicas=row.count("minReplicas"),
            throughput=throughputs.get(name, {}),
        )
        _require_plausible(row.location, services_by_name[name])
    if not services_by_name:
        raise CommandError(f"{demand} has no services; write one row for each")
    return tuple(services_by_name.values())


def _require_plausible(location: str, service: ServiceDemand) -> None:
    fastest = max(service.throughput.values(), default=0.0)
    if fastest > 0 and service.demand / fastest > _MAX_REPLICAS:
        limit = counted(_MAX_REPLICAS, "replica")
        raise CommandError(
            f"{location}: {service.name} needs more than {limit}; write demand and throughput in "
            "the same unit"
        )


def _read_throughput(file: str, gpu_model: GpuModel) -> dict[str, dict[InstanceType, float]]:
    throughputs: dict[str, dict[InstanceType, float]] = {}
    for row in _read_rows(file, ("service", "profile", "throughput")):
        name, profile = row.text("service"), row.text("profile")
        gi_profile = gpu_model.find_profile(profile)
        if gi_profile is None and profile != WHOLE_GPU:
            known = ", ".join((*(candidate.name for candidate in gpu_model.profiles), WHOLE_GPU))
            raise CommandError(
                f"{row.location}: {gpu_model.name} has no profile {profile}; supported: {known}"
            )
        instance_type = InstanceType(gpu_model.name, gi_profile.name if gi_profile else WHOLE_GPU)
        if instance_type in throughputs.setdefault(name, {}):
            raise CommandError(f"{row.location}: duplicate row for {name} on {profile}; keep one")
        throughputs[name][instance_type] = row.number("throughput")
    return throughputs


def _read_rows(
    file: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[_CsvRow]:
    reader = csv.reader(io.StringIO(_read_text(file), newline=""), strict=True)
    line = 1
    try:
        columns = {column.lower(): column for column in (*required, *optional)}
        names = [cell.strip() for cell in next(reader, [])]
        header = [columns.get(name.lower(), name) for name in names]
        _check_columns(file, header, required, optional)
        line = reader.line_num + 1
        for cells in reader:
            location = f"{file}, line {line}"
            if any(cell.strip() for cell in cells):
                if len(cells) > len(header):
                    raise CommandError(
                        f"{location}: {len(cells)} cells for {counted(len(header), 'column')}"
                    )
                yield _CsvRow(location, dict(zip(header, cells, strict=False)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise CommandError(f"{file}, line {line}: not CSV: {error}") from None


def _check_columns(
    file: str, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    """Raise CommandError for missing, duplicate and misspelled columns; others are ignored."""
    known = (*required, *optional)
    wanted = ",".join((*required, *(f"[{column}]" for column in optional)))
    if missing := [column for column in required if column not in header]:
        raise CommandError(
            f"{file} has no column {', '.join(missing)}; its first line must name {wanted}"
        )
    if duplicates := [column for column in known if header.count(column) > 1]:
        raise CommandError(f"{file} has the column {duplicates[0]} twice; keep one")
    given = {name.lower(): name for name in header}
    for column in optional:
        if column not in header and (
            similar := difflib.get_close_matches(column.lower(), given, cutoff=0.8)
        ):
            raise CommandError(
                f"{file} has the column {_shorten(given[similar[0]])}; write {column} if that is "
                "meant, or rename it"
            )


def _read_text(file: str) -> str:
    try:
        raw = Path(file).expanduser().read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from None


class _SliceInput(BaseModel):
    model_config = ConfigDict(extra="forbid")
    profile: str
    start: int
    service: str | None = None


class _GpuInput(BaseModel):
    gpu: str
    node: str = ""
    slices: tuple[_SliceInput, ...] = ()


def read_layout(file: str, gpu_model: GpuModel) -> tuple[FleetGpu, ...]:
    """Return the GPUs of a file that `tessera plan -o json` printed, or of its `layouts` alone.

    Raises CommandError for anything that is wrong in the file.
    """
    try:
        document = from_json(_read_text(file))
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}") from None
    if isinstance(document, dict) and "layouts" in document:
        document = document["layouts"]
    try:
        gpus = TypeAdapter(tuple[_GpuInput, ...]).validate_python(document)
    except ValidationError as error:
        first_error = error.errors()[0]
        where = ".".join(map(str, first_error["loc"]))
        raise CommandError(
            f"{file} is not a layout ({where}: {first_error['msg']}); write "
            '[{"gpu": NAME, "slices": [{"profile": NAME, "start": N, "service": NAME}]}], as '
            "tessera plan -o json does under layouts"
        ) from None
    names = [gpu.gpu for gpu in gpus]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise CommandError(f"{file}: duplicate GPU {duplicates[0]}; give every GPU its own name")
    return tuple(_build_gpu(file, gpu, gpu_model) for gpu in sorted(gpus, key=lambda gpu: gpu.gpu))


def _build_gpu(file: str, gpu_input: _GpuInput, gpu_model: GpuModel) -> FleetGpu:
    services = [mig_slice.service or "" for mig_slice in gpu_input.slices]
    for name in (gpu_input.gpu, gpu_input.node, *services):
        _require_printable(f"{file}: a name", name)
    slices = []
    for mig_slice in gpu_input.slices:
        gi_profile = gpu_model.find_profile(mig_slice.profile)
        profile = gi_profile.name if gi_profile else mig_slice.profile
        slices.append(FleetSlice(mig_slice.start, profile, mig_slice.service))
    fleet_gpu = FleetGpu(
        name=gpu_input.gpu,
        gpu_model=gpu_model.name,
        node=gpu_input.node,
        slices=tuple(sorted(slices, key=lambda mig_slice: mig_slice.placement)),
    )
    if error := layout_error(gpu_model, fleet_gpu.layout):
        raise CommandError(f"{file}: GPU {gpu_input.gpu}: {error}")
    return fleet_gpu
