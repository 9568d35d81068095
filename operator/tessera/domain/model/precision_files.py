"""The files that engines load, by the precision that was chosen."""

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import Cache, ModelShape
from tessera.api.precision import Precision, PrecisionVariant


class CheckedVariant(PrecisionVariant):
    """Precision whose files were read; its revision is the commit that was read."""

    shape: ModelShape
    """Dimensions of the files."""


def as_listed(precision: Precision) -> Precision:
    """Return the precisions without what was read of their files, but with the commit."""
    listed = PrecisionVariant.model_fields
    variants = (variant.model_dump(include=set(listed)) for variant in precision.variants)
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
