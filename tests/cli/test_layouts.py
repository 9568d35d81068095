"""`tessera plan` and `tessera mosaic` over pools with partitioned GPUs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs_tests.pages import page_of
from environments import ROOT
from tessera.api.mig import MigPlan
from tessera.api.pool_reasons import Discovered, PoolAccepted
from tessera.api.reasons import StatusVerdict
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.fleet import FleetInputs, read_fleet
from tessera.cli.mosaic.command import (
    LEGEND,
    mosaic_svg,
    mosaics,
    render_mosaic,
)
from tessera.cli.plan.arguments import PLAN
from tessera.cli.plan.command import UNMET, run
from tessera.cli.plan.command import render_plans as planned
from tessera.cli.pool_layouts import (
    PoolSnapshot,
    layout_changes,
    planned_slices,
    pool_snapshots,
)
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.hardware.pools import PoolView
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.mig_backends.usage import slice_usages
from tessera.domain.observed.snapshot import PodReading, Pool, Readings, Ref
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.cli.memory_api import MemoryApi
from tests.cli.partitioned_cluster import (
    PRODUCT,
    a_partitioned_cluster,
    a_plan,
    a_slice,
    put_layout,
    put_node,
    put_pod,
)
from tests.memory_cluster import MemoryCluster
from tests.mig_builders import A100
from tests.mig_oracles import enumerate_layouts

AGENT = {"backend": "Agent"}
layouts = st.sampled_from(
    enumerate_layouts(
        A100, [profile.name for profile in A100.profiles if not profile.has_media_engines]
    )
)
UNIT = {
    "node": "a100-0",
    "gpus": [0],
    "phase": "Draining",
    "since": "2026-11-20T11:59:20Z",
    "message": "waiting for replacements of team-a/chat-0 to become Ready",
}
TITLE = "{http://www.w3.org/2000/svg}title"


async def read_inputs(api: MemoryApi, **loads: float) -> FleetInputs:
    fleet = replace(await read_fleet(Reader(api), None), at=NOW)
    if not loads:
        return fleet
    pods = {
        Ref("team-a", name.replace("_", "-")): PodReading(activity=load)
        for name, load in loads.items()
    }
    return replace(fleet, readings=Readings(at=NOW, pods=pods))


def a_pool(gpu_layouts: Sequence[Layout], services: Mapping[Ref, str]) -> PoolSnapshot:
    """Build one node with an agent; the pods of `services` use its slices in order."""
    pods = iter(services)
    node = MigNode(
        name="n",
        gpu_model=A100,
        ready=True,
        reports_pods=True,
        gpus=tuple(
            MigGpu(
                index=index,
                instances=tuple(
                    GpuInstance(placement=placement, holders=(next(pods),)) for placement in layout
                ),
            )
            for index, layout in enumerate(gpu_layouts)
        ),
    )
    view = PoolView(
        pool=Pool(ref=Ref("", "a100"), generation=1, spec=None),
        accepted=StatusVerdict(PoolAccepted.VALID, ""),
        discovered=StatusVerdict(Discovered.DEVICES_FOUND, ""),
    )
    return PoolSnapshot(
        view=view, nodes=(node,), slices=slice_usages([node], ()), service_of_pod=services
    )


async def test_a_plan_in_progress_is_shown_with_its_order_moves_price_and_reasons() -> None:
    status = {"target": a_plan(), "units": [UNIT], "done": 2, "total": 3}
    text = planned(
        await read_inputs(a_partitioned_cluster(AGENT, status, "Repartitioning")), None, "text"
    ).text
    assert text == (
        "a100: Repartitioning: so it is: Repartitioning\n"
        "  mode Auto, backend Agent\n"
        "  Plan 3f2a91c0 of 2026-11-20 11:59:20 UTC:\n"
        "    3 -> 2 GPUs in use, 6.00 -> 4.00 USD per hour (2.00 less)\n"
        "    lower bound 3.90 USD per hour (gap 2.5 %); 1 replica to move\n"
        "    SERVICE      SLICES      PREVIOUS\n"
        "    team-a/chat  1x 2g.20gb  1g.10gb\n"
        "    team-a/code  2x 3g.40gb  -\n"
        "    team-a/chat moves 1 replica and costs 0.27 -> 0.54 USD per hour\n"
        "    reason for team-a/chat: 310 tokens/s on 2g.20gb serve 300\n"
        "    1 GPU to repartition, 2 of 3 as planned; at most 1 node at a time, in this order as "
        "capacity allows:\n"
        "      1. a100-0\n"
        "         GPU 0: 7x 1g.10gb -> 1x 2g.20gb, 1x 3g.40gb\n"
        "           displaced: chat-0 of team-a/chat\n"
        "  Repartitioning now:\n"
        "    a100-0 GPU 0: Draining since 40s: waiting for replacements of team-a/chat-0 to become "
        "Ready\n"
    )


async def test_a_proposed_plan_comes_with_the_command_that_approves_it() -> None:
    api = a_partitioned_cluster({"mode": "Propose"}, {"proposed": a_plan()}, "AwaitingApproval")
    text = planned(await read_inputs(api), "a100", "text").text
    approve = (
        "kubectl annotate acceleratorpool a100 tessera.dev/approve-layout=3f2a91c0 --overwrite"
    )
    assert "Proposed plan 3f2a91c0" in text
    assert text.endswith(f"waits for your approval:\n    {approve}\n")
    [body] = json.loads(planned(await read_inputs(api), None, "json").text)["pools"]
    assert (body["approvalCommand"], body["target"]) == (approve, None)
    assert body["layoutReady"]["reason"] == "AwaitingApproval"
    assert body["proposed"]["perHourAfter"] == "4"
    assert body["adoptionTime"] is None
    text_before_approval = render_mosaic(await read_inputs(api), None, "text", 110).text
    assert "After plan 3f2a91c0, which waits until it is approved:" in text_before_approval
    assert body["proposed"]["changes"] == [
        {
            "node": "a100-0",
            "gpu": 0,
            "before": [{"profile": "1g.10gb", "start": start} for start in range(7)],
            "after": [{"profile": "2g.20gb", "start": 0}, {"profile": "3g.40gb", "start": 4}],
            "displacedPods": ["team-a/chat-0", "team-a/code-0"],
        }
    ]


async def test_a_plan_that_only_saves_is_shown_with_the_time_of_its_adoption(
    tmp_path: Path,
) -> None:
    plans = {"target": a_plan(name="5e0d"), "proposed": a_plan()}
    fleet = await read_inputs(a_partitioned_cluster(AGENT, plans))
    text = planned(fleet, None, "text").text
    assert "the best plan then is adopted at 2026-11-20 12:04:20 UTC" in text
    assert "approve" not in text
    [body] = json.loads(planned(fleet, None, "json").text)["pools"]
    assert (body["approvalCommand"], body["adoptionTime"]) == (None, "2026-11-20T12:04:20+00:00")
    waits = "plan 3f2a91c0, which waits until 2026-11-20 12:04:20 UTC"
    assert f"After {waits}:" in render_mosaic(fleet, None, "text", 110).text
    assert f"after {waits}</text>" in drawn_svg(fleet, tmp_path)
    [body] = json.loads(render_mosaic(fleet, None, "json", 110).text)["pools"]
    assert (body["plan"], body["proposed"]) == ("3f2a91c0", True)
    fleet = await read_inputs(a_partitioned_cluster(AGENT, plans | {"units": [UNIT]}))
    text = planned(fleet, None, "text").text
    assert "after the current units are finished." in text
    assert (
        f"After {waits} and until the current units" in render_mosaic(fleet, None, "text", 110).text
    )


@pytest.mark.parametrize(
    ("backend", "leaving"),
    [("Agent", ["team-a/chat-0"]), ("MigManager", ["team-a/chat-0", "team-a/code-9"])],
)
async def test_who_leaves_depends_on_what_the_backend_can(backend: str, leaving: list[str]) -> None:
    api = a_partitioned_cluster({"backend": backend}, {"target": a_plan()}, "Repartitioning")
    small = [a_slice("1g.10gb", 0, "chat-0"), a_slice("3g.40gb", 4, "code-9")]
    put_layout(api, "a100-0", [small, [a_slice("3g.40gb", 4, "code-0")]])
    put_layout(api, "a100-1", [[a_slice("2g.20gb", start) for start in (0, 2, 4)]])
    [body] = json.loads(planned(await read_inputs(api), None, "json").text)["pools"]
    assert [change["displacedPods"] for change in body["target"]["changes"]] == [leaving]


async def test_a_service_that_is_left_out_is_named_with_the_code_3() -> None:
    api = a_partitioned_cluster(
        {}, {"target": a_plan(unmet=["team-a/giant"])}, "InsufficientCapacity"
    )
    output = planned(await read_inputs(api), None, "text")
    assert output.exit_code == UNMET
    assert "team-a/giant gets less than it needs: the pool has too few GPUs" in output.text


async def test_a_pool_that_is_as_planned_is_reported_as_such() -> None:
    plan = a_plan(nodes=[{"node": "a100-1", "gpus": [{"gpu": 0, "slices": ["2g.20gb"] * 3}]}])
    fleet = await read_inputs(a_partitioned_cluster({}, {"target": plan}))
    assert "Every GPU has its planned layout." in planned(fleet, None, "text").text
    assert "After plan" not in render_mosaic(fleet, None, "text", 110).text


async def test_a_plan_says_how_many_nodes_of_a_template_exist() -> None:
    api = a_partitioned_cluster({})
    template = {"product": PRODUCT, "gpus": 1, "maxNodes": 4, "expectedStart": "90s"}
    api.cluster.objects[ObjectKey("acceleratorpools", "", "a100")]["spec"].update(
        nodeTemplate=template
    )
    fleet = await read_inputs(api)
    assert "2 of 4 nodes exist, expected start 90s" in planned(fleet, None, "text").text
    [body] = json.loads(planned(fleet, None, "json").text)["pools"]
    assert body["nodesOnDemand"] == {"existing": 2, "maxNodes": 4, "expectedStart": "90s"}


async def test_a_pool_without_layouts_is_an_error_with_what_to_write() -> None:
    with pytest.raises(CommandError, match="patch acceleratorpool a100"):
        planned(await read_inputs(a_partitioned_cluster(None)), None, "text")
    with pytest.raises(CommandError, match="AcceleratorPool/h100 does not exist; existing: a100"):
        planned(await read_inputs(a_partitioned_cluster({})), "h100", "text")
    with pytest.raises(CommandError, match="no AcceleratorPool exists"):
        planned(await read_inputs(MemoryApi(MemoryCluster())), None, "text")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["a100", "--demand", "x"], "POOL plans in a cluster"),
        (["--demand", "x"], "needs --throughput, --gpu"),
        (["--moves-per-gpu", "2"], "--moves-per-gpu plans without a cluster and needs --demand"),
    ],
)
def test_options_for_no_cluster_come_together_and_without_a_pool(
    words: list[str], fix: str
) -> None:
    with pytest.raises(CommandError, match=fix):
        run(PLAN.parse(words))


async def test_the_mosaic_has_service_start_load_and_price_before_and_after_a_plan() -> None:
    api = a_partitioned_cluster(AGENT, {"target": a_plan()}, "Repartitioning")
    text = render_mosaic(await read_inputs(api, chat_0=0.82), None, "text", 76).text
    assert text == (
        "a100: Repartitioning: so it is: Repartitioning\n"
        "3 GPUs in MIG mode for 6.00 USD per hour, of which 2.68 is idle and 1.59 stranded\n"
        "Placements are assumed on nodes without tessera-node; their counts are right.\n"
        "\n"
        "Before:\n"
        "a100-0: A100-80GB\n"
        "0 |1g -   |1g -   |1g *ch~|1g -   |1g -   |1g -   |1g -   |///////|\n"
        "  |@0 0.27|@1 0.27|0.27   |@3 0.27|@4 0.27|@5 0.27|@6 0.27|///////| / 0.13\n"
        "1 |                               |3g code                        |\n"
        "  |                               |@4 0.93                        | / 1.07\n"
        "a100-1: A100-80GB, assumed\n"
        "0 |2g *code       |2g -           |2g -           |               |\n"
        "  |0.54           |0.54           |0.54           |               | / 0.39\n"
        "\n"
        "After plan 3f2a91c0:\n"
        "a100-0: A100-80GB\n"
        "0 |2g chat        |               |3g code                        |\n"
        "  |@0 0.54        |               |@4 0.93                        | / 0.54\n"
        "1 |                               |3g code                        |\n"
        "  |                               |@4 0.93                        | / 1.07\n"
        "a100-1: A100-80GB, assumed\n"
        "0 |2g -           |2g -           |2g -           |               |\n"
        "  |0.54           |0.54           |0.54           |               | / 0.39\n"
        "\n"
    ) + "\n".join((*LEGEND, ""))
    wide = render_mosaic(await read_inputs(api, chat_0=0.82), None, "text", 200).text
    assert "|@2 82% 0.27|" in wide


async def test_the_page_shows_what_the_commands_print() -> None:
    status = {"target": a_plan(), "units": [UNIT], "done": 2, "total": 3}
    api = a_partitioned_cluster(AGENT, status, "Repartitioning")
    pool = api.cluster.objects[ObjectKey("acceleratorpools", "", "a100")]
    words = "GPU 0 of Node/a100-0: waiting for replacements of team-a/chat-0 to become Ready"
    pool["status"]["conditions"][0]["message"] = words
    fleet = await read_inputs(api, chat_0=0.82, code_0=0.5, code_1=0.31)
    page = (ROOT / page_of("repartition")).read_text(encoding="utf-8")
    for text in (
        planned(fleet, None, "text").text,
        render_mosaic(fleet, None, "text", 98).text,
    ):
        assert "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines()) in page


async def test_no_line_of_gpus_is_wider_than_the_terminal() -> None:
    fleet = await read_inputs(a_partitioned_cluster({}, price="1234.5"))
    for width in (65, 80, 100, 300):
        lines = render_mosaic(fleet, None, "text", width).text.splitlines()
        assert max(len(line) for line in lines if "|" in line) <= width


async def test_an_unknown_pod_is_drawn_on_its_slice_by_its_own_name() -> None:
    api = a_partitioned_cluster(None)
    put_layout(api, "a100-0", [[a_slice("3g.40gb", 0, "other/thing")], []])
    assert "3g pod other/thing" in render_mosaic(await read_inputs(api), None, "text", 110).text


async def test_equal_names_in_two_namespaces_stay_apart() -> None:
    api = a_partitioned_cluster(None)
    put_pod(api, "chat-9", "chat", "a100-1", "mig-2g.20gb")
    body = next(body for key, body in api.cluster.objects.items() if key.name == "chat-9")
    body["metadata"]["namespace"] = "team-b"
    text = render_mosaic(await read_inputs(api), None, "text", 200).text
    assert "team-b/chat" in text
    assert "2g code" in text


async def test_undrawable_nodes_and_faults_are_reported() -> None:
    api = a_partitioned_cluster(None)
    put_node(api, "a100-1", 1, {"mig-3g.40gb": 3})
    put_layout(api, "a100-0", [[], []], fault="ResetRequired", message="reset it")
    text = render_mosaic(await read_inputs(api), None, "text", 110).text
    assert (
        "Node a100-1 is not drawn: 1 A100-80GB GPU cannot be partitioned into 3x 3g.40gb." in text
    )
    assert "Node a100-0 GPU 1: ResetRequired: reset it" in text


def alone(api: MemoryApi, gpus: int, offered: Mapping[str, int], *pods: str) -> MemoryApi:
    """Leave the node a100-0 alone, without an agent and with these pods on slices of 1g.10gb."""
    for key in [key for key in api.cluster.objects if key.plural in ("nodelayouts", "pods")]:
        del api.cluster.objects[key]
    del api.cluster.objects[ObjectKey("nodes", "", "a100-1")]
    put_node(api, "a100-0", gpus, offered)
    for name in pods:
        put_pod(api, name, "chat", "a100-0", "mig-1g.10gb")
    return api


async def test_slices_beside_whole_gpus_are_drawn_on_gpus_that_are_assumed() -> None:
    offered = {"gpu": 1, "mig-1g.10gb": 4, "mig-3g.40gb": 1}
    api = alone(a_partitioned_cluster(None), 2, offered, "chat-0", "chat-1")
    text = render_mosaic(await read_inputs(api), None, "text", 110).text
    assert "1 GPU in MIG mode for 2.00 USD per hour" in text
    assert "1 GPU not in MIG mode" in text
    assert "a100-0: A100-80GB, assumed" in text
    assert [text.count(tile) for tile in ("1g chat", "1g -", "3g -")] == [2, 2, 1]
    assert "not drawn" not in text
    assert "/ 0.00" not in text
    with pytest.raises(CommandError):
        planned(await read_inputs(api), None, "text")


async def test_nothing_is_counted_or_explained_of_slices_that_cannot_be_drawn() -> None:
    api = alone(a_partitioned_cluster(None), 2, {"gpu": 1, "mig-3g.40gb": 3})
    text = render_mosaic(await read_inputs(api), None, "text", 110).text
    assert "Node a100-0 is not drawn: it offers 1 whole GPU beside 3 slices" in text
    assert "in MIG mode for" not in text
    assert LEGEND[0] not in text


def drawn_svg(fleet: FleetInputs, folder: Path) -> str:
    file = folder / "layouts.svg"
    render_mosaic(fleet, None, "text", 110, str(file))
    return file.read_text("utf-8")


async def test_the_picture_of_a_plan_has_both_sides(tmp_path: Path) -> None:
    fleet = await read_inputs(a_partitioned_cluster(AGENT, {"target": a_plan()}, "Repartitioning"))
    document = ElementTree.fromstring(drawn_svg(fleet, tmp_path))  # noqa: S314 - it is our own
    titles = Counter(element.text for element in document.iter(TITLE))
    assert titles["1g.10gb chat displaced @2 0.27"] == 1
    assert titles["2g.20gb chat @0 0.54"] == 1
    assert titles["3g.40gb code @4 0.93"] == 3


async def test_the_picture_without_a_plan_has_the_current_slices(tmp_path: Path) -> None:
    picture = drawn_svg(await read_inputs(a_partitioned_cluster(None)), tmp_path)
    document = ElementTree.fromstring(picture)  # noqa: S314 - it is our own
    titles = {element.text for element in document.iter(TITLE)}
    assert "1g.10gb chat @2 0.27" in titles


async def test_planned_services_of_one_name_have_their_namespace_in_the_picture() -> None:
    pools: list[PoolSnapshot] = []
    for namespace in ("team-a", "team-b"):
        service = {"service": f"{namespace}/new", "profile": "2g.20gb", "replicas": 1}
        api = a_partitioned_cluster(AGENT, {"target": a_plan(services=[service])}, "Repartitioning")
        pools += pool_snapshots(await read_inputs(api), None)
    document = ElementTree.fromstring(mosaic_svg(mosaics(pools)))  # noqa: S314 - it is our own
    titles = {element.text for element in document.iter(TITLE)}
    assert {"2g.20gb team-a/new @0 0.54", "2g.20gb team-b/new @0 0.54"} <= titles


async def test_json_has_every_slice_with_its_price_and_what_it_becomes() -> None:
    api = a_partitioned_cluster(AGENT, {"target": a_plan()}, "Repartitioning")
    [pool] = json.loads(render_mosaic(await read_inputs(api, code_0=0.5), None, "json", 80).text)[
        "pools"
    ]
    assert (pool["idlePerHour"], pool["strandedPerHour"]) == ("2.6786", "1.5893")
    first, second, assumed = pool["gpus"]
    assert second["slices"] == [
        {
            "profile": "3g.40gb",
            "start": 4,
            "state": "used",
            "service": "team-a/code",
            "pods": ["team-a/code-0"],
            "activity": 0.5,
            "perHour": "0.9286",
        }
    ]
    assert first["after"][0] == {"profile": "2g.20gb", "start": 0, "service": "team-a/chat"}
    assert {gpu_slice["start"] for gpu_slice in assumed["slices"]} == {None}


@given(st.lists(st.tuples(layouts, layouts), min_size=1, max_size=4), st.data())
def test_a_plan_places_exactly_its_replicas_and_repartitions_what_it_says(
    layout_pairs: list[tuple[Layout, Layout]], data: st.DataObject
) -> None:
    """Each of two services gets up to half of the slices of a profile; some pods exist."""
    offered = Counter(placement.profile for _, later in layout_pairs for placement in later)
    due = {
        (f"team-a/{name}-{profile}", profile): data.draw(st.integers(0, count // 2))
        for profile, count in sorted(offered.items())
        for name in ("a", "b")
    }
    services = {
        Ref("team-a", f"pod-{at}"): data.draw(st.sampled_from([name for name, _ in due] or ["x"]))
        for at in range(sum(len(before) for before, _ in layout_pairs))
    }
    pool = a_pool([before for before, _ in layout_pairs], services)
    plan = MigPlan.model_validate(
        a_plan(
            services=[
                {"service": name, "profile": profile, "replicas": count}
                for (name, profile), count in due.items()
            ],
            nodes=[
                {
                    "node": "n",
                    "gpus": [
                        {
                            "gpu": at,
                            "slices": [
                                f"{placement.profile}@{placement.start}" for placement in later
                            ],
                        }
                        for at, (_, later) in enumerate(layout_pairs)
                    ],
                }
            ],
        )
    )
    slices_after = planned_slices(pool, plan)
    assert [
        tuple(gpu_slice.placement for gpu_slice in slices_after["n", at])
        for at in range(len(layout_pairs))
    ] == [later for _, later in layout_pairs]
    assigned = Counter(
        (gpu_slice.service, gpu_slice.placement.profile)
        for slices in slices_after.values()
        for gpu_slice in slices
        if gpu_slice.service in {name for name, _ in due}
    )
    assert assigned == +Counter(due)
    assert [change.gpu for change in layout_changes(pool, plan)] == [
        at for at, (before, later) in enumerate(layout_pairs) if before != later
    ]


async def test_without_gpus_in_mig_mode_there_is_nothing_to_draw() -> None:
    with pytest.raises(CommandError, match="nvidia-smi -mig 1"):
        render_mosaic(await read_inputs(MemoryApi(MemoryCluster())), None, "text", 80)


async def test_a_user_who_may_not_list_pools_gets_an_error() -> None:
    api = a_partitioned_cluster({}, {"target": a_plan()}, "Repartitioning")
    api.hidden = {"acceleratorpools"}
    with pytest.raises(DeniedError, match="permission denied: list acceleratorpools"):
        planned(await read_inputs(api), None, "text")


async def test_what_may_not_be_read_is_noted() -> None:
    api = a_partitioned_cluster({}, {"target": a_plan()}, "Repartitioning")
    api.hidden = {"nodelayouts"}
    for text in (
        planned(await read_inputs(api), None, "text").text,
        render_mosaic(await read_inputs(api), None, "text", 110).text,
    ):
        assert text.startswith("Note: permission denied: list nodelayouts")
