"""Address and credentials of the API server."""

from urllib.request import getproxies

import yaml
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from tessera.ports import ClusterError

# Maximum number of connections: the writes of a cycle, and beside them the election and the lists.
_MAX_CONNECTIONS = 20


class Connection(Configuration):
    """Address of the API server, and the credentials."""

    namespace = "default"
    """Namespace of the kubeconfig's context."""

    def __init__(self) -> None:
        super().__init__()
        self.connection_pool_maxsize = _MAX_CONNECTIONS
        # Looking for a proxy in the environment takes a third of a request's time.
        self.client_session_kwargs = {"trust_env": bool(getproxies())}

    async def token(self) -> str | None:
        """Return the current bearer token without its scheme; None with a client certificate."""
        value = await self.get_api_key_with_prefix("BearerToken", alias="authorization")
        return value.split(" ", 1)[-1] if value else None


async def connect(kubeconfig: str | None, context: str | None = None) -> Connection:
    """Return the connection of a kubeconfig, or of the pod's ServiceAccount.

    The token of a ServiceAccount is read again when it is rotated. Raises ClusterError when there
    is no usable configuration.
    """
    connection = Connection()
    try:
        if kubeconfig:
            loader = await config.load_kube_config(  # type: ignore[no-untyped-call]  # partly typed package
                config_file=kubeconfig, context=context, client_configuration=connection
            )
            current_context = loader.current_context["context"]
            connection.namespace = current_context.get("namespace") or connection.namespace
        else:
            config.load_incluster_config(client_configuration=connection)  # type: ignore[no-untyped-call]  # same
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise ClusterError(f"{kubeconfig or 'the ServiceAccount'}: {error}") from error
    return connection
