"""Nodes that come when pods need them, and go: what autoscalers and clouds do.

`autoscaler` plays Karpenter and the cluster autoscaler, in the words and shapes of `reports`;
`karpenter` runs the real core of Karpenter, whose nodes get machines of this world. `notices`
takes spot nodes back.
"""
