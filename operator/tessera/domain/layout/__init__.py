"""The layout problem of MIG pools: slice demands in, a layout for every GPU out."""
