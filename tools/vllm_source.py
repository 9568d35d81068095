"""Reads flags and metrics of one vLLM version from its source: vllm_source.py FOLDER VERSION.

Prints JSON as `vllm_facts.py` takes it. The engine's own code builds the parser and the metrics;
runs in a process of its own, since it imports another project with stubs for its libraries.
"""

import enum
import importlib
import importlib.util
import inspect
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

from vllm_stubs import install

# Where the module of the parser is, newest first.
_PARSER_MODULES = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
_SLEEP_METRICS = "vllm.entrypoints.serve.dev.sleep.metrics"
# The context length of the captured server; some buckets end at it.
_MAX_MODEL_LEN = 1024
_BOUNDS = ("Gt", "Ge", "Lt", "Le")


def read_flags() -> list[dict[str, Any]]:
    """All options of `vllm serve`, hidden ones included."""
    [module] = [name for name in _PARSER_MODULES if _exists(name)][:1]
    parsers: Any = importlib.import_module("vllm.utils.argparse_utils")
    parser = importlib.import_module(module).make_arg_parser(
        parsers.FlexibleArgumentParser(prog="vllm serve")
    )
    bounds = _bounds_by_field()
    groups = {id(action): g.title for g in parser._action_groups for action in g._group_actions}
    return [
        _flag(parser, action, groups.get(id(action)), bounds.get(action.dest, []))
        for action in parser._actions
    ]


def _exists(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def _flag(
    parser: Any, action: Any, group: str | None, bounds: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    of_group = [limits for config, limits in bounds if config == group]
    converter, optional = action.type, False
    if "optional_type" in getattr(converter, "__qualname__", ""):
        optional = True
        cells = [cell.cell_contents for cell in converter.__closure__ or ()]
        [converter] = [content for content in cells if callable(content)][:1]
    registered = parser._option_string_actions.items()
    return {
        "flags": [option for option, known in registered if known is action],
        "dest": action.dest,
        "action": type(action).__name__,
        "type": None if converter is None else _name(converter),
        "accepts_none": optional,
        "nargs": action.nargs,
        "default": _plain(action.default),
        "choices": _plain(sorted(action.choices, key=str)) if action.choices else None,
        "constraints": next(iter([*of_group, *(limits for _, limits in bounds)]), None),
    }


def _name(converter: Any) -> str:
    """The converter's name; one that a function returns has the name of the function."""
    name: str = getattr(converter, "__qualname__", repr(converter))
    return name.partition(".<locals>")[0]


def _bounds_by_field() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Bounds of numbers, which the parser leaves to the config classes."""
    bounds: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, config in vars(importlib.import_module("vllm.config")).items():
        if not inspect.isclass(config):
            continue
        for field, info in getattr(config, "__pydantic_fields__", {}).items():
            limits = {
                kind.lower(): getattr(limit, kind.lower())
                for limit in info.metadata
                if (kind := type(limit).__name__) in _BOUNDS
            }
            if limits:
                bounds.setdefault(field, []).append((name, limits))
    return bounds


def _plain(value: Any) -> Any:
    """The value as JSON has it; the text of any other object."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return repr(value)


class _Recorder:
    """Stands for a metric of prometheus_client, and notes that it was made."""

    made: ClassVar[list["_Recorder"]] = []
    kind = ""

    def __init__(
        self,
        name: str,
        documentation: str,  # noqa: ARG002 - given by name
        labelnames: Any = (),
        *,
        buckets: Any = (),
        **__: Any,
    ) -> None:
        self.name, self.labels_, self.buckets = name, sorted(labelnames), list(buckets)
        _Recorder.made.append(self)

    def labels(self, *_: Any, **__: Any) -> "_Recorder":
        return self

    def set(self, *_: Any) -> None:
        pass

    inc = observe = set

    @property
    def exposed_name(self) -> str:
        counts = self.kind == "counter" and not self.name.endswith("_total")
        return f"{self.name}_total" if counts else self.name


def record_metrics() -> None:
    """Let all metrics be recorded; modules take the classes when they are imported."""
    prometheus: Any = importlib.import_module("prometheus_client")
    for kind in ("Counter", "Gauge", "Histogram"):
        setattr(prometheus, kind, type(kind, (_Recorder,), {"kind": kind.lower()}))


class _Config(types.SimpleNamespace):
    """A config of which only the given parts are set."""

    def __getattr__(self, _: str) -> None:
        return None


def read_metrics() -> list[dict[str, Any]]:
    """The metrics of vLLM itself: those of a default server, then those of its features."""
    loggers: Any = importlib.import_module("vllm.v1.metrics.loggers")
    config: Any = importlib.import_module("vllm.config")
    features = {
        "speculative_config": types.SimpleNamespace(num_speculative_tokens=1),
        "lora_config": types.SimpleNamespace(max_loras=1),
    }
    rows = {metric["name"]: metric for metric in _made_by(loggers, config, {}, ["metrics.txt"])}
    for metric in _made_by(loggers, config, features, []):
        rows.setdefault(metric["name"], metric)
    return [rows[name] for name in sorted(rows)]


def _made_by(
    loggers: Any, config: Any, features: dict[str, Any], seen_in: list[str]
) -> list[dict[str, Any]]:
    observability = config.ObservabilityConfig()
    observability.kv_cache_metrics = bool(features)
    _Recorder.made.clear()
    logger = loggers.PrometheusStatLogger(
        _Config(
            **features,
            model_config=_Config(served_model_name="model", max_model_len=_MAX_MODEL_LEN),
            observability_config=observability,
            cache_config=config.CacheConfig(),
        )
    )
    logger.log_engine_initialized()
    if features and _exists(_SLEEP_METRICS):
        importlib.import_module(_SLEEP_METRICS).SleepModeOperationMetrics()
    return [
        {
            "name": metric.exposed_name,
            "type": metric.kind,
            "labels": metric.labels_,
            "buckets": metric.buckets or None,
            "seen_in": seen_in,
        }
        for metric in _Recorder.made
    ]


def main(folder: Path, version: str) -> None:
    logging.disable(logging.ERROR)
    install(folder, version)
    # The parser writes help texts only if it is asked for help.
    sys.argv = ["vllm", "serve"]
    record_metrics()
    facts = {"vllm": version, "options": read_flags(), "metrics": read_metrics()}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
