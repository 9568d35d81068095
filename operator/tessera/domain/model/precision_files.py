"""The files that engines load, by the precision that was chosen."""

from collections.abc import Iterable

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import Cache, ModelShape
from tessera.api.precision import CHECKPOINT, Precision, PrecisionVariant


class CheckedVariant(PrecisionVariant):
    """Precision whose files were read; its revision is the commit that was read."""

    shape: ModelShape
    """Dimensions of the files."""


class GatedPrecision(Precision):
    """Precisions of a version under a gate, some of which its replicas may not have."""

    untried: frozenset[str] = frozenset()
    """Names of those that no gate has tried yet; `checkpoint` is that of the model's own files."""

    refused: frozenset[str] = frozenset()
    """Names of those that are not tried either."""


def listed_precisions(precision: Precision) -> tuple[str, ...]:
    """Return the names of the precisions of a version, that of the model's own files first."""
    return (CHECKPOINT, *(variant.precision for variant in precision.variants))


def open_precisions(precision: Precision) -> tuple[str | None, ...]:
    """Return the precisions that replicas may have, that of the model's files (None) first."""
    listed = (None, *(variant.precision for variant in precision.variants))
    if not isinstance(precision, GatedPrecision):
        return listed
    closed = precision.untried | precision.refused
    return tuple(each for each in listed if (each or CHECKPOINT) not in closed)


def closed_precision(precision: Precision, name: str | None) -> str | None:
    """Return why replicas may not have a precision; None if they may."""
    if name in open_precisions(precision) or not isinstance(precision, GatedPrecision):
        return None
    is_refused = (name or CHECKPOINT) in precision.refused
    return "the gate refused it" if is_refused else "the gate has not tried it"


def with_closed(
    spec: InferenceServiceSpec, untried: Iterable[str], refused: Iterable[str] = ()
) -> InferenceServiceSpec:
    """Return the spec with precisions, by name, that its replicas may not have."""
    names = {"untried": frozenset(untried), "refused": frozenset(refused)}
    if not any(names.values()) and not isinstance(spec.precision, GatedPrecision):
        return spec
    precision = spec.precision
    gated = GatedPrecision.model_construct(
        precision.model_fields_set, **{**dict(precision), **names}
    )
    return spec.model_copy(update={"precision": gated})


def with_one_precision(spec: InferenceServiceSpec, name: str) -> InferenceServiceSpec:
    """Return the spec with one of its precisions, by name, as the only one of its replicas."""
    return with_closed(spec, {*listed_precisions(spec.precision)} - {name})


def as_listed(precision: Precision) -> Precision:
    """Return the precisions without what was read of their files, but with the commit, and
    without those that no gate has tried."""
    listed, usable = PrecisionVariant.model_fields, open_precisions(precision)
    variants = (
        variant.model_dump(include=set(listed))
        for variant in precision.variants
        if variant.precision in usable
    )
    return Precision(variants=tuple(PrecisionVariant(**fields) for fields in variants))


def files_of(spec: InferenceServiceSpec, precision: str | None) -> PrecisionVariant | None:
    """Return the variant whose files a precision uses; None if it uses the model's own."""
    return next(
        (
            variant
            for variant in spec.precision.variants
            if variant.precision == precision and variant.uri is not None
        ),
        None,
    )


def shape_in(spec: InferenceServiceSpec, shape: ModelShape, precision: str | None) -> ModelShape:
    """Return the dimensions of the files that a precision uses, given those of the model."""
    variant = files_of(spec, precision)
    return variant.shape if isinstance(variant, CheckedVariant) else shape


def spec_in(
    spec: InferenceServiceSpec, shape: ModelShape | None, precision: str | None
) -> InferenceServiceSpec:
    """Return the spec with the files that a precision uses in place of the model's own.

    The model keeps its `shape`, which may come from a catalog by the URI.
    """
    variant = files_of(spec, precision)
    return spec if variant is None else with_files_of(variant, spec, shape)


def with_files_of(
    variant: PrecisionVariant, spec: InferenceServiceSpec, shape: ModelShape | None
) -> InferenceServiceSpec:
    """Return the spec with the files of a variant in place of the model's own."""
    model, uri = spec.model, variant.uri or spec.model.uri
    cache = Cache() if uri.startswith(("pvc://", "oci://")) else model.cache
    fields = dict(model, uri=uri, revision=variant.revision, shape=shape, cache=cache)
    # The shape is not set, so that pods are the same wherever it comes from.
    located = Model.model_construct({*model.model_fields_set, "revision"}, **fields)
    return spec.model_copy(update={"model": located})
