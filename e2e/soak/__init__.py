"""Half an hour of faults on the installed chart; at the end all is as if there had been none."""
