"""Nodes that come when pods need them, and go: what autoscalers and clouds do.

`autoscaler` plays Karpenter and the cluster autoscaler, in the words and shapes of `reports`.
`notices` takes spot nodes back.
"""
