"""`tessera-node`: tells how the GPUs of a node are cut and who is on them, and cuts if told to."""
