"""The GPUs of live nodes, and the parts of NVIDIA's GPU operator that look after them.

What a GPU is and may be cut into says `fakegpu.silicon`. The device plugin, feature discovery and
mig-manager are machines of steps that know nothing of Kubernetes; `operands` lets them see the
labels of their node and writes what they answer.
"""
