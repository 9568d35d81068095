"""The gateway that the chart installs, as its clients and its platform use it."""

import ssl
from dataclasses import dataclass

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam

from demo.cluster import NAMESPACE, InstalledCluster, Json, StepError, install
from scenarios.actions import ScenarioNamespace
from scenarios.commands import run_tessera
from tessera.resources.api_resources import PODS
from tests.gateway.store.postgresql import PostgresqlServer
from world.api import SECRETS
from world.testing import PATIENCE_SECONDS, eventually, is_ready

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
REPLICA = "x-tessera-replica"
SELECTOR = "app.kubernetes.io/name=tessera-gateway"


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway, and the tenant of a namespace with its first key."""

    namespace: ScenarioNamespace
    base: str
    """URL of its API: of its Service, or of one pod."""
    pod_address: str
    """Of one pod, for its internal port."""
    key: str
    tls: ssl.SSLContext | None = None
    """Verifies its certificate."""

    def client(self, key: str | None = None, base: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=base or self.base,
            api_key=key or self.key,
            max_retries=0,
            timeout=180,
            http_client=openai.DefaultAsyncHttpxClient(verify=self.tls or True),
        )

    async def usage(self) -> dict[str, Json]:
        """Return the sums of the tenant by key, as `tessera usage` has them.

        A wait does not repeat a command that fails.
        """
        result = await run_tessera(
            self.namespace.cluster,
            *("usage", "--gateway", f"http://{self.pod_address}:8080", "--by", "key"),
            *("--tenant", self.namespace.name, "--output", "json"),
        )
        if result.code != 0:
            raise StepError(result.errors)
        return {row["key"]: row for row in result.json["rows"]}


async def install_with_database(
    cluster: InstalledCluster, server: PostgresqlServer, pods: int, *values: str
) -> None:
    """Install so many pods of the gateway that share a PostgreSQL database."""
    await install(cluster, *await database_values(cluster, server, pods), *values)


async def database_values(
    cluster: InstalledCluster, server: PostgresqlServer, pods: int
) -> tuple[str, ...]:
    """Create the Secret of a database; return the values of so many gateways that share it."""
    database = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "database", "namespace": NAMESPACE},
        "stringData": {"url": server.url("postgres")},
    }
    await cluster.api.apply(SECRETS.path(NAMESPACE, "database"), database, "kubectl")
    return (
        "gateway.enabled=true",
        "gateway.database.secretName=database",
        "gateway.autoscaling.enabled=false",
        f"gateway.replicaCount={pods}",
    )


async def ready_pods(
    cluster: InstalledCluster,
    count: int,
    within: float = PATIENCE_SECONDS,
    *,
    min_restarts: int = 0,
) -> list[Json]:
    """Wait until so many pods of the gateway are ready and no other one is there."""

    async def are_ready() -> list[Json]:
        pod_list = await cluster.api.get(PODS.path(NAMESPACE), labelSelector=SELECTOR)
        pods: list[Json] = pod_list["items"]
        statuses = [pod["status"] for pod in pods]
        assert [is_ready(pod) for pod in pods] == [True] * count, statuses
        for status in statuses:
            assert status["containerStatuses"][0]["restartCount"] >= min_restarts
        return pods

    return await eventually(are_ready, within=within)


async def create_key(namespace: ScenarioNamespace, name: str) -> str:
    """Create a key of the namespace's tenant at the command line; return it."""
    result = await run_tessera(
        namespace.cluster,
        *("key", "create", name, "--tenant", namespace.name, "--output", "json"),
    )
    assert result.code == 0, result.errors
    key: str = result.json["key"]
    return key


async def answered(gateway: Gateway, model: str = "chat", within: float = PATIENCE_SECONDS) -> str:
    """Send a request until the gateway knows its key and its model; return the replica."""
    async with gateway.client() as client:

        async def is_answered() -> str:
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model=model, messages=HELLO, max_tokens=4
                )
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                raise AssertionError(str(error)) from error
            replica = raw.headers[REPLICA]
            assert replica.startswith(model)
            return replica

        return await eventually(is_answered, within=within)


async def is_charged(gateway: Gateway) -> None:
    """Assert that an answer has its charge: a price counts a minute after it was seen."""
    body = {"model": "chat", "prompt": "hello", "max_tokens": 2}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {gateway.key}"}) as http:
        response = await http.post(f"{gateway.base}/completions", json=body)
    assert response.status_code == 200, response.text
    assert "x-tessera-charge" in response.headers, response.text


async def is_refused(gateway: Gateway) -> bool:
    """Return whether a new connection is refused by its key."""
    async with gateway.client() as client:
        try:
            await client.models.list()
        except openai.AuthenticationError:
            return True
    return False


async def service_address(cluster: InstalledCluster) -> str:
    """Return the address of the gateway's Service."""
    body = await cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/tessera-gateway")
    address: str = body["spec"]["clusterIP"]
    return address
