"""A kubelet for every live node of a world, in one asyncio process.

Containers are processes of this machine or coroutines of this process. What it does like the real
one: admission of devices, volumes, environment, init and sidecar containers, restarts with
back-off, probes, hooks, termination, status, logs, heart-beat. What it cannot do without root is
accepted and not enforced: `runAsUser`, `readOnlyRootFilesystem` and the rest of a security context,
CPU and memory limits, network policies. There is no mount namespace either: mount paths are
rewritten where they stand in commands, arguments and environment, but not inside files.
"""
