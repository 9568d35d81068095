"""Precisions that a model may run in besides that of its files."""

from typing import Annotated, Literal

from pydantic import Field

from tessera.api.meta import Wire, rule, rules_config
from tessera.api.model_files import ModelUri, Revision

# Precisions that files of their own can have, beside those that the engine makes while loading.
PrecisionName = Literal["awq-int4", "gptq-int4", "int8", "fp8", "nvfp4", "mxfp4"]
# The precision of the model's own files, by name.
CHECKPOINT = "checkpoint"


class PrecisionVariant(Wire):
    """Precision in which the answers are acceptable."""

    precision: PrecisionName
    """`fp8` without `uri`: the engine quantizes the weights while loading (native on Hopper,
    weight-only on Ampere). Every other precision is that of files of their own."""

    uri: ModelUri | None = None
    """Location of the same model's files in this precision, as in `spec.model.uri`, read with the
    same credentials. A Job reads their `config.json`; files of another model or precision are not
    used, and the condition `Accepted` says why."""

    revision: Revision | None = None
    """Branch, tag or commit of an `hf://` `uri`; omitted, `main`. The commit whose `config.json`
    was read is the one that engines load."""

    model_config = rules_config(
        rule(
            "has(self.uri) || self.precision == 'fp8'",
            "spec.precision.variants[].precision: the engine makes fp8 alone while loading; set "
            "uri to files in this precision",
            ".precision",
        ),
        rule(
            "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
            "spec.precision.variants[].revision applies to an hf:// uri only; remove it, or put it "
            "into uri",
            ".revision",
        ),
    )


class Precision(Wire):
    """Precisions that the model may run in, besides that of its files."""

    variants: Annotated[tuple[PrecisionVariant, ...], Field(max_length=8)] = ()
    """Precisions allowed besides that of the checkpoint; the cheapest that fits is used. No
    precision that changes answers is used unless it is listed here."""

    model_config = rules_config(
        rule(
            "!has(self.variants) || self.variants.all(v, "
            "self.variants.exists_one(w, w.precision == v.precision))",
            "spec.precision.variants lists a precision twice: keep 1 of them",
            ".variants",
        )
    )


def own_files_rule(unless: str = "") -> dict[str, str]:
    """Return the CEL rule that variants name other files than the model's own."""
    return rule(
        f"{unless}!has(self.precision) || !has(self.precision.variants) || "
        "self.precision.variants.all(v, !has(v.uri) || v.uri != self.model.uri)",
        "spec.precision.variants has the uri of spec.model.uri, whose precision is used anyway: "
        "name other files, or remove it",
        ".precision.variants",
    )
