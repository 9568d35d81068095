"""The lab's commands, registered with `tessera` by entry points."""
