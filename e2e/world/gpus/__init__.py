"""The GPUs of live nodes, and the parts of NVIDIA's GPU operator that look after them.

`fakegpu.gpu_driver` has the GPUs and the rules of their partitioning. The device plugin, feature
discovery and mig-manager are state machines that know nothing of Kubernetes; `operands` gives them
the labels of their node and writes what they return.
"""
