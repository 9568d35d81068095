"""The GPUs behind a pool, as agents tell them, else as labels and resources let one conclude."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from tessera.api.mig import NodeTarget
from tessera.api.node_layout import NodeLayoutStatus, ObservedGpu
from tessera.domain.kept import KeyedCache
from tessera.domain.mig.boards import GpuModel, find_gpu_model
from tessera.domain.mig.layouts import Geometry, Layout, SlicePlacement, layout_error
from tessera.domain.pools import COUNT_LABEL, GPU, PRODUCT_LABEL, PoolView
from tessera.domain.ref import Ref
from tessera.domain.repartition import notation
from tessera.domain.repartition.counts import spread_out
from tessera.domain.repartition.devices import labelled, offered, spelled
from tessera.domain.repartition.facts import TAINT, Card, Ground, NodeLayout, Tile
from tessera.domain.snapshot import Node

_REPLICAS = "nvidia.com/gpu.replicas"
_MIG_MODES = ("enabled", "disabling")

KeptGrounds: TypeAlias = KeyedCache[
    tuple[str, str], [str | None, Node, NodeLayout | None, NodeTarget | None], Ground | None
]
"""By pool and node."""


def kept_grounds() -> KeptGrounds:
    """Nothing yet."""
    return KeyedCache(_ground)


def grounds(
    view: PoolView,
    nodes: Sequence[Node],
    layouts: Sequence[NodeLayout],
    kept: KeptGrounds | None = None,
) -> tuple[Ground, ...]:
    """Every node of the pool whose product is known, by name.

    Where no agent tells the layouts, they are the pool's targets as far as the numbers allow.
    """
    ground = kept or kept_grounds()
    told = {layout.name: layout for layout in layouts}
    status = view.pool.status.mig
    plan = status.target if status else None
    targets = {target.node: target for target in plan.nodes} if plan else {}
    return tuple(
        found
        for node in sorted(nodes, key=lambda node: node.name)
        if node.name in view.node_names
        for layout in (told.get(node.name),)
        for target in (None if _seen(layout) else targets.get(node.name),)
        if (found := ground((view.pool.name, node.name), view.product, node, layout, target))
    )


def _seen(layout: NodeLayout | None) -> NodeLayoutStatus | None:
    """What an agent tells, where it can tell anything."""
    status = layout.status if layout else None
    return status if status is not None and not status.problem else None


def _ground(
    usual: str | None, node: Node, layout: NodeLayout | None, target: NodeTarget | None
) -> Ground | None:
    """`usual` is the product of the other nodes."""
    seen = _seen(layout)
    product = _product(node, seen)
    if product is None:
        return None
    bare = Ground(
        name=node.name,
        board=find_gpu_model(product) or _unknown(product),
        ready=node.schedulable,
        tainted=TAINT in node.taints,
        labels=node.labels,
        allocatable=node.allocatable,
        layout=layout,
    )
    if problem := _contradiction(usual, node, seen) or _no_board(product):
        return replace(bare, disagrees=problem)
    return _as_seen(bare, seen) if seen else _as_counted(bare, target)


def _product(node: Node, seen: NodeLayoutStatus | None) -> str | None:
    names = [gpu.product for gpu in seen.gpus] if seen else []
    return node.labels.get(PRODUCT_LABEL) or next(iter(names), None)


def _unknown(product: str) -> GpuModel:
    return GpuModel(
        name=product,
        products=(product,),
        pci_devices=(),
        compute_slices=0,
        memory_slices=0,
        profiles=(),
        aliases=(),
    )


def _no_board(product: str) -> str | None:
    if find_gpu_model(product) is not None:
        return None
    hint = "; slices are planned under mig.strategy=mixed" if "-MIG-" in product else ""
    return f"no MIG profiles are known for {product}{hint}"


def _contradiction(usual: str | None, node: Node, seen: NodeLayoutStatus | None) -> str | None:
    """Who says what about the same GPUs."""
    label = node.labels.get(PRODUCT_LABEL)
    if seen is None:
        return None
    for gpu in seen.gpus:
        expected = label or usual
        if expected is not None and gpu.product != expected:
            who = f"its label {PRODUCT_LABEL}" if label else "the other nodes of the pool"
            return f"GPU {gpu.index} is {gpu.product} by its driver and {expected} by {who}"
    count = node.labels.get(COUNT_LABEL)
    if count is not None and count != str(len(seen.gpus)):
        return f"the driver shows {len(seen.gpus)} GPUs, its label {COUNT_LABEL} says {count}"
    return None


def _as_seen(bare: Ground, seen: NodeLayoutStatus) -> Ground:
    """An agent knows places, pods and processes."""
    cut = [gpu for gpu in seen.gpus if gpu.mode in _MIG_MODES]
    for gpu in cut:
        if problem := layout_error(
            bare.board, tuple(SlicePlacement(one.start, one.profile) for one in gpu.slices)
        ):
            return replace(bare, disagrees=f"GPU {gpu.index}: {problem}")
    return replace(
        bare,
        cards=tuple(sorted((_card(bare.board, gpu) for gpu in cut), key=lambda card: card.index)),
        uncut=len(seen.gpus) - len(cut),
        tells_pods=True,
        cuts=seen.cuts,
    )


def _card(board: GpuModel, gpu: ObservedGpu) -> Card:
    found = (
        Tile(
            spot=SlicePlacement(one.start, spelled(board, one.profile)),
            holders=tuple(Ref(*pod.split("/", 1)) for pod in one.pods),
            processes=one.processes,
        )
        for one in gpu.slices
    )
    return Card(
        index=gpu.index,
        uuid=gpu.uuid,
        tiles=tuple(sorted(found, key=lambda tile: tile.spot)),
        fault="NeedsReset" if gpu.mode == "disabling" else gpu.fault,
        message=gpu.message,
    )


def _as_counted(bare: Ground, target: NodeTarget | None) -> Ground:
    """Numbers fit on GPUs in some way, or they are no numbers of this node."""
    text = bare.labels.get(COUNT_LABEL, "")
    if not (text.isdecimal() and text.isascii()):
        return replace(bare, disagrees=f"its label {COUNT_LABEL} is {text!r}, not a number")
    counts, whole = _numbers(bare, int(text))
    unknown = sorted(name for name in counts if bare.board.find_profile(name) is None)
    if unknown:
        return replace(bare, disagrees=f"{bare.board.name} has no profile {unknown[0]}")
    if whole and not counts:
        return replace(bare, uncut=whole)
    if whole:
        slices = sum(counts.values())
        return replace(
            bare,
            disagrees=f"it offers {whole} whole GPUs beside {slices} slices, and nobody says which "
            "of its GPUs are in MIG mode: install tessera-node (node.enabled of the chart)",
        )
    found = spread_out(bare.board, _geometry(counts), int(text), _likely(target, bare.board))
    if found is None:
        said = ", ".join(f"{count}x {name}" for name, count in sorted(counts.items()))
        return replace(bare, disagrees=f"{text} GPUs {bare.board.name} cannot be cut into {said}")
    return replace(
        bare,
        cards=tuple(
            Card(index=index, tiles=tuple(Tile(spot=spot) for spot in layout))
            for index, layout in enumerate(found)
        ),
    )


def _geometry(counts: Mapping[str, int]) -> Geometry:
    return tuple(sorted(counts.items()))


def _numbers(bare: Ground, gpus: int) -> tuple[Mapping[str, int], int]:
    """Slices by profile, and whole GPUs.

    While the device plugin is away nothing is allocatable; feature discovery may still tell.
    """
    if any(bare.allocatable.values()):
        return offered(bare), min(gpus, bare.allocatable.get(GPU, 0))
    found = labelled(bare)
    return found, 0 if found or bare.labels.get(_REPLICAS) == "0" else gpus


def _likely(target: NodeTarget | None, board: GpuModel) -> tuple[Layout, ...]:
    """The target's layouts by index, where it names them one after the other from 0."""
    found: list[Layout] = []
    for gpu in sorted(target.gpus, key=lambda gpu: gpu.gpu) if target else ():
        if gpu.gpu != len(found):
            break
        found.append(notation.layout(board, gpu.slices))
    return tuple(found)
