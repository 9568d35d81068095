"""Options of `tessera update`."""

from tessera.cli.options import CLUSTER_OPTIONS, Command, argument, namespace_option, output_options

UPDATE = Command(
    "update",
    "roll a service to what this version of Tessera would build",
    "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
    "True, this command requests the new pod template now; otherwise it does nothing.",
    argument("service", "name of the InferenceService"),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the service"),
    *output_options(),
)
