"""Which engines are polled, and when."""

import asyncio

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, EngineReplica, OfferedModel
from tessera.gateway.polling import EnginePoller
from tests.builders import NOW

PAGE = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"


class Engines:
    """Engines that answer once they are let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.seconds = 100.0
        self.poller = EnginePoller(self.read, lambda: self.seconds)

    async def read(self, address: str) -> bytes | None:
        self.asked.append(address)
        await self.open.wait()
        return PAGE if "silent" not in address else None

    async def poll(self) -> list[str]:
        self.asked.clear()
        self.poller.poll()
        for _ in range(3):
            await asyncio.sleep(0)
        return sorted(self.asked)


def a_model(
    namespace: str, replicas: int, name: str = "chat", *, ready: bool = True
) -> OfferedModel:
    return OfferedModel(
        service=Ref(namespace, name),
        uid=f"{namespace}-{name}",
        names=(name,),
        tenant=namespace,
        replicas=tuple(
            EngineReplica(
                pod=Ref(namespace, f"{name}-{number}"),
                uid=f"{namespace}-{name}-{number}",
                address=f"{namespace}-{name}-{number}",
                ready_since=NOW if ready else None,
            )
            for number in range(replicas)
        ),
    )


async def test_engines_are_polled_for_a_minute_after_the_last_request() -> None:
    engines = Engines()
    engines.poller.update(Directory(models=(a_model("a", 2), a_model("b", 1))))
    assert await engines.poll() == []
    engines.poller.saw_traffic([Ref("a", "chat")])
    assert await engines.poll() == ["a-chat-0", "a-chat-1"]
    loads = engines.poller.take()
    assert {uid: (load.running, load.waiting) for uid, load in loads.items()} == {
        "a-chat-0": (1, 2),
        "a-chat-1": (1, 2),
    }
    assert loads["a-chat-0"].observed_at == 100.0
    assert engines.poller.take() == {}
    engines.seconds = 160
    assert await engines.poll() == ["a-chat-0", "a-chat-1"]
    engines.seconds = 161
    assert await engines.poll() == []


async def test_an_engine_that_hangs_is_asked_once() -> None:
    engines = Engines()
    engines.poller.update(Directory(models=(a_model("a", 1),)))
    engines.poller.saw_traffic([Ref("a", "chat")])
    engines.open.clear()
    assert await engines.poll() == ["a-chat-0"]
    assert await engines.poll() == []
    engines.open.set()
    await asyncio.sleep(0)
    assert await engines.poll() == ["a-chat-0"]


async def test_hanging_engines_of_one_namespace_do_not_stop_the_polls_of_others() -> None:
    engines = Engines()
    evil = [a_model("evil", 300, f"s{number}") for number in range(3)]
    engines.poller.update(Directory(models=(*evil, a_model("good", 1))))
    engines.poller.saw_traffic([*(model.service for model in evil), Ref("good", "chat")])
    engines.open.clear()
    asked = await engines.poll()
    assert (len(asked), "good-chat-0" in asked) == (33, True)
    engines.open.set()
    await asyncio.sleep(0)
    assert "good-chat-0" in await engines.poll()


async def test_starting_and_silent_engines_have_no_load() -> None:
    engines = Engines()
    models = (a_model("a", 1, ready=False), a_model("silent", 1))
    engines.poller.update(Directory(models=models))
    engines.poller.saw_traffic([model.service for model in models])
    assert await engines.poll() == ["silent-chat-0"]
    assert engines.poller.take() == {}
