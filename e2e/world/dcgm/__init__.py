"""A simulator of NVIDIA's dcgm-exporter, fed by the engines that hold the devices."""
