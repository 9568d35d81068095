"""The layout problem of MIG pools: slice demands in, a target layout for every GPU out."""
