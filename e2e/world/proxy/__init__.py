"""What kube-proxy does elsewhere: Services on loopback addresses, by forwarding in user space."""
