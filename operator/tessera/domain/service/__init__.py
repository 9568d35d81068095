"""One service: the proposal for it, its model files, and its pod template version."""
